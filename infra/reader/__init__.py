"""The reader: the process on the hospital's side that holds the keys and the clear data of one attempt at a time.

It lists, retrieves, hashes and seals; then it decrypts on request and hands over arrays, allow-listed attributes and pseudonyms,
counting what it hands over. The flow that drives it gets counts and digests. What it holds ends with the flow's connection.
"""
