"""Reading what a trainer wrote and writing what may leave: parsing, recognising, rounding."""
