"""Reading a workload without trusting it: tar and OCI layout in, plain files and facts out."""
