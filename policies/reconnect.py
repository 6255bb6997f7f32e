"""The reconnect gate: the line came back only after everything that saw clear data was proven gone, and outputs were sealed."""

from dataclasses import dataclass

from policies.gate import Evidence, Gate, check

ENDINGS = frozenset({"sealed", "refused", "ended"})
HOLDERS = ("launcher", "reader")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectEvidence(Evidence):
    """The keeper's own proofs. holders: who was asked; holding: who still holds something or did not answer; processes: alive in
    the sandbox's process namespace; ending: what the ledger says of the attempt; receipt: digest of the sealed receipt."""

    restored: bool
    token_matched: bool
    holders: tuple[str, ...]
    holding: tuple[str, ...]
    processes: int
    ending: str
    line_up: bool
    codes: tuple[str, ...]
    receipt: str


@check("reconnect-token", "node", "The token is not this attempt's.", "Let `rapha doctor` sweep; look for a second node process.")
def right_token(e: ReconnectEvidence) -> object:
    return e.token_matched is True


@check("reconnect-holder", "node", "Launcher or reader still holds this attempt.", "Restart it; the keeper asks again.")
def nobody_holds(e: ReconnectEvidence) -> object:
    return set(HOLDERS) <= set(e.holders) and e.holding == ()


@check("reconnect-alive", "node", "A process of the sandbox is still alive.", "Kill it; look why the launcher did not.")
def nothing_lives(e: ReconnectEvidence) -> object:
    return type(e.processes) is int and e.processes == 0


@check(
    "reconnect-not-sealed",
    "node",
    "The ledger does not show this attempt sealed, refused or ended.",
    "Seal or end the attempt first.",
)
def is_over(e: ReconnectEvidence) -> object:
    return e.ending in ENDINGS


@check("reconnect-no-receipt", "node", "A sealed attempt came without its receipt's digest.", "Seal again as a new attempt.")
def has_receipt(e: ReconnectEvidence) -> object:
    return e.ending != "sealed" or (e.receipt.startswith("sha256:") and len(e.receipt) == 71)


@check("reconnect-kept", "node", "The keeper kept the line cut.", "Read the other codes; then sweep.")
def came_back(e: ReconnectEvidence) -> object:
    return e.restored is True and e.line_up is True and e.codes == ()


RECONNECT_GATE: Gate[ReconnectEvidence] = Gate(
    "reconnect", (right_token, nobody_holds, nothing_lives, is_over, has_receipt, came_back)
)
