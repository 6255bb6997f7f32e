"""The demo's orchestrator: blobs and delivered documents in a folder, over HTTP on loopback."""
