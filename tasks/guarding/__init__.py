"""Reading what a trainer wrote and writing what may leave: parsing, recognising, rounding. The stage is
`tasks.training.guard`.
"""
