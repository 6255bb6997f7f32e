"""PixelMed's DicomSRValidator, kept warm: its Java machine and its compiled style sheet outlive the report.

`python -m infra.validator DESCRIPTOR` is that process, in bubblewrap; `infra.validator.warm` starts it, asks it and ends it. It
holds one report in clear at a time, in memory alone, and what it says of one goes back over memory too: it quotes values.
"""
