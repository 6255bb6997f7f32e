"""The commands that need no node, by name: the module that has them, and one line of help, read before anything is imported."""

JOB = "Write, sign and follow a job."
LEDGER = "Check the record of what a node decided."
RECEIPT = "Check a receipt."


def announce() -> dict[str, tuple[str, str]]:
    """First word of a command -> (module with a `register`, help); the help is the command's own, and a test holds them equal."""
    return {
        "job": ("rapha.console.job", JOB),
        "ledger": ("rapha.console.ledger", LEDGER),
        "receipt": ("rapha.console.receipt", RECEIPT),
    }
