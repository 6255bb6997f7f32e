"""The study reader: the process on the hospital's side that can open what the receiver sealed, a study at a time.

It holds the private key, clear headers and pixels of what is read. The sandbox gets arrays and allow-listed attributes over the
loader's protocol; the flow that drives it gets indexes, counts, digests and codes; the archive gets the report, which is made
here because it names the patient. One connection is one study, and its end is the end of all that was held for it.
"""
