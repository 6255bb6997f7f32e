"""Which gates must have passed before each door opens, in order, and which checks each gate must have run.

Retyped by hand beside the gates themselves: a check that is taken out of a gate, or a gate out of the flow, is a refusal at the
door. To add a gate, add it to both tables (CONTRIBUTING.md has the page).
"""

from typing import Literal

Door = Literal["train", "seal"]

BEFORE_TRAINING = (
    "intake",
    "escrow",
    "manifest",
    "workload",
    "policy",
    "attestation",
    "cut",
    "query",
    "retrieve",
)

REQUIRED_GATES: dict[Door, tuple[str, ...]] = {
    "train": BEFORE_TRAINING,
    "seal": (*BEFORE_TRAINING, "train", "output", "reattestation"),
}

REQUIRED_CHECKS: dict[str, frozenset[str]] = {
    "intake": frozenset(),
    "escrow": frozenset(),
    "manifest": frozenset(),
    "workload": frozenset(),
    "policy": frozenset(),
    "attestation": frozenset(),
    "cut": frozenset(),
    "query": frozenset(),
    "retrieve": frozenset(),
    "train": frozenset(),
    "output": frozenset(),
    "reattestation": frozenset(),
    "reconnect": frozenset(),
}
