"""`python -m rapha.console`: the console without its script."""

from rapha.console.app import main

main()
