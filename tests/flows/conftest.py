"""Fixtures for everything that needs the whole world."""

from tests.fixtures.world import here, hospital

__all__ = ["here", "hospital"]
