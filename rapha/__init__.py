"""Training on clinical images where they are. For an AI team: `from rapha import RaphaDataLoader`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapha.loader import RaphaDataLoader as RaphaDataLoader

__all__ = ["RaphaDataLoader"]


def __getattr__(name: str) -> Any:
    """The loader needs numpy; the verifiers do not, so it is imported when it is asked for."""
    if name == "RaphaDataLoader":
        from rapha.loader import RaphaDataLoader

        return RaphaDataLoader
    raise AttributeError(name)
