"""The webhook: how an AI team's job reaches the node, and how the team asks what became of it."""
