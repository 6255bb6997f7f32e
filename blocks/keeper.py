"""The keeper: owner of the outside line. Its answers as the facts that the gates judge.

Verbs over its UNIX socket: status · cut(job, attempt) · prove(job, attempt) · register(job, attempt, pidns) · watch(job, attempt)
· restore(job, attempt, token) · sweep. Tokens outlive the connection and the keeper: only `restore` and `sweep` give one back.
A process that holds anything of an attempt (launcher, reader) answers the keeper's own question `holds(job, attempt)` with
`{"holds": bool}`; `{"job": "", "attempt": 0}` asks for any attempt.
"""

from dataclasses import dataclass
from typing import Any

from blocks.channel import Channel
from policies.cut import AddressFact, LinkFact, NetworkFacts, RouteFact
from rapha.errors import PeerError


@dataclass(frozen=True, slots=True)
class CutFacts:
    """What `cut` and `prove` answer; the fields are those of `policies.cut.CutEvidence`."""

    control: str
    control_at: int
    after: str
    after_any: str
    token: str
    held: bool
    broken: tuple[str, ...]
    network: NetworkFacts


@dataclass(frozen=True, slots=True)
class RestoreFacts:
    """What `restore` answers; the fields are those of `policies.reconnect.ReconnectEvidence`."""

    restored: bool
    token_matched: bool
    holders: tuple[str, ...]
    holding: tuple[str, ...]
    processes: int
    ending: str
    line_up: bool
    codes: tuple[str, ...]


class Keeper(Channel):
    """A connection to the keeper of the node's namespace."""

    def cut(self, job: str, attempt: int) -> CutFacts:
        """Takes the line down. The same attempt may ask twice; `PeerError(keeper-busy)` while another holds it."""
        return _cut_facts(self.call("cut", job=job, attempt=attempt, timeout=60.0))

    def prove(self, job: str, attempt: int) -> CutFacts:
        """The same facts, measured now."""
        return _cut_facts(self.call("prove", job=job, attempt=attempt, timeout=60.0))

    def register(self, job: str, attempt: int, pidns: int) -> None:
        """Names the sandbox's process namespace, before it may run. Refuses without an unbroken token."""
        self.call("register", job=job, attempt=attempt, pidns=pidns)

    def watch(self, job: str, attempt: int) -> tuple[str, ...]:
        """Codes of what broke the cut of this attempt so far; `()` while it is whole."""
        answer = self.call("watch", job=job, attempt=attempt, timeout=10.0)
        return tuple(str(code) for code in answer["broken"]) if isinstance(answer.get("broken"), list) else ("keeper-odd-answer",)

    def restore(self, job: str, attempt: int, token: str) -> RestoreFacts:
        """Gives the token back, if every proof holds; the facts say which did not."""
        answer = self.call("restore", job=job, attempt=attempt, token=token, timeout=60.0)
        return _restore_facts(answer)

    def sweep(self) -> dict[str, Any]:
        """Gives back every token whose attempt is over by the same proofs: {"restored": [...], "kept": [...]}, names "job#n"."""
        answer = self.call("sweep", timeout=60.0)
        return {"restored": list(answer["restored"]), "kept": list(answer["kept"])}

    def status(self) -> dict[str, Any]:
        """{"tokens": ["job#n"], "unknown": bool, "line_up": bool, "ways_out": [codes], "netns": inode}."""
        return self.call("status")


def read_network(value: dict[str, Any]) -> NetworkFacts:
    """The JSON of a namespace's facts; raises `KeyError` or `TypeError` on any other shape."""
    return NetworkFacts(
        inode=value["inode"],
        wan=value["wan"],
        lan=tuple(value["lan"]),
        lan_routes=tuple(value["lan_routes"]),
        links=tuple(LinkFact(**item) for item in value["links"]),
        addresses=tuple(AddressFact(**item) for item in value["addresses"]),
        routes=tuple(RouteFact(**item) for item in value["routes"]),
        ipv6_open=tuple(value["ipv6_open"]),
        sockets=tuple(value["sockets"]),
        sent=value["sent"],
    )


def _cut_facts(answer: dict[str, Any]) -> CutFacts:
    try:
        return CutFacts(
            control=str(answer["control"]),
            control_at=int(answer["control_at"]),
            after=str(answer["after"]),
            after_any=str(answer["after_any"]),
            token=str(answer["token"]),
            held=answer["held"] is True,
            broken=tuple(str(code) for code in answer["broken"]),
            network=read_network(answer["network"]),
        )
    except (KeyError, TypeError, ValueError):
        raise PeerError("keeper-odd-answer", "the keeper's answer has not the shape of a proof", peer="keeper") from None


def _restore_facts(answer: dict[str, Any]) -> RestoreFacts:
    try:
        return RestoreFacts(
            restored=answer["restored"] is True,
            token_matched=answer["token_matched"] is True,
            holders=tuple(str(name) for name in answer["holders"]),
            holding=tuple(str(name) for name in answer["holding"]),
            processes=int(answer["processes"]),
            ending=str(answer["ending"]),
            line_up=answer["line_up"] is True,
            codes=tuple(str(code) for code in answer["codes"]),
        )
    except (KeyError, TypeError, ValueError):
        raise PeerError("keeper-odd-answer", "the keeper's answer has not the shape of a proof", peer="keeper") from None
