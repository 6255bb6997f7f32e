"""The AI team's side of the demo: a small network, the bundle that it travels in, the declaration that asks for it."""
