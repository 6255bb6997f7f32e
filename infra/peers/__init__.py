"""Third parties' programs, started for the tests and the measurements on free ports, in folders of the caller's."""
