"""The receiver: where archives send what we asked for by C-MOVE. One process for the node, apart from every flow.

It answers 0x0000 only for what lies sealed on disk and stands in its journal. It cannot read back what it received: it holds the
study reader's public key and no other. engine.py is all that knows the DIMSE library.
"""
