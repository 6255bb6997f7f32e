"""The two models that come with the node: each a package that runs in the sandbox, and the script that trained it."""
