"""The console `rapha`: what an AI team and an auditor need.

A node's own commands join through the entry point group `rapha.commands`.
"""
