"""The attestor: a party of its own that checks a receipt by the outsider's command and signs for the vault."""
