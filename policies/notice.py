"""Who is told of a result, in which order, in which words, and what a failure to tell means. Pure.

A notice is told to one person of its group at a time: level 0 is the group's first person, level 1 the second, and after the last
the first again, until somebody acknowledges. A mail holds codes and counts, never a value that came from a patient's record.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Literal

from rapha.canonical import digest_of
from rapha.errors import Refusal

GROUPS = ("radiology",)  # every group that a result may be for; the profile names the persons of each
OPERATORS = "operators"  # who is told of dead letters, where the profile names them
MAX_COUNT = 99_999
CODES = re.compile(r"[A-Za-z0-9-]{1,64}(?: [A-Za-z0-9-]{1,64}){0,15}")
ESCALATE_AFTER = 900  # seconds
REFUSED_FOR_GOOD = frozenset({"mail-recipient-refused", "mail-content-refused"})
REFUSED_FOR_NOW = frozenset({"mail-recipient-later", "mail-content-later", "mail-unfinished"})
After = Literal["held-up", "again", "given-up"]

# A mailbox as RFC 5321 section 4.1.2 writes it, without quoted strings, comments and address literals.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_ADDRESS = re.compile(rf"(?=[^@]{{1,64}}@)(?=.{{3,254}}\Z){_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)*{_LABEL}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeRules:
    """persons: group -> mail addresses in the order in which they are told; escalate_after: seconds until the next one is."""

    persons: Mapping[str, tuple[str, ...]]
    escalate_after: int = ESCALATE_AFTER

    def person(self, group: str, level: int) -> str:
        """Who is told at this level. `Refusal` notice-nobody for a group that has no persons."""
        persons = self.persons.get(group, ())
        if not persons:
            raise Refusal(["notice-nobody"], "the profile names nobody for a notice's group")
        return persons[level % len(persons)]

    def escalated_at(self, group: str, level: int, now: int, *, given_up: bool) -> int:
        """When the next level is told. One that nobody could be sent is passed on at once, until each person was tried."""
        last = (level + 1) % max(1, len(self.persons.get(group, ()))) == 0
        return now + self.escalate_after if given_up and last else now


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Texts with {row}, {notice}, the counts of `fields` and the codes of `coded` in them."""

    subject: str
    body: str
    fields: tuple[str, ...]
    coded: tuple[str, ...] = ()


_COUNTS = "Findings: {findings}, of them critical: {critical}. Instances analysed: {analysed}, left out: {left_out}.\n"
_FIELDS = ("findings", "critical", "analysed", "left_out")
TEMPLATES: Mapping[str, Template] = {
    "critical": Template(
        subject="CRITICAL finding in row {row} (notice {notice})",
        body="A critical finding was made in row {row} of the reading service.\n" + _COUNTS + "The report is in the archive.\n",
        fields=_FIELDS,
    ),
    "critical-unstored": Template(
        subject="CRITICAL finding in row {row}, no report yet (notice {notice})",
        body="A critical finding was made in row {row} of the reading service.\n"
        + _COUNTS
        + "Its report is NOT proven to be in the archive: that failed several times. Look at the images.\n",
        fields=_FIELDS,
    ),
    "result": Template(
        subject="Result for row {row} (notice {notice})",
        body="Row {row} of the reading service was analysed.\n" + _COUNTS + "The report is in the archive.\n",
        fields=_FIELDS,
    ),
    "dead-letter": Template(
        subject="Row {row} was given up on (notice {notice})",
        body="Row {row} of the reading service was given up on at stage {stage}: {codes}.\n"
        "`rapha dead-letters list` on the node shows it; `replay` owes it again.\n",
        fields=(),
        coded=("stage", "codes"),
    ),
}
# What is sent where a notice is not one of the above in every field: somebody is told, and nothing of the notice is quoted.
BARE = Template(
    subject="Notice {notice} for row {row}",
    body="There is a notice for row {row} of the reading service. `rapha notify list` on the node shows it.\n",
    fields=(),
)
BARE_CRITICAL = Template(subject="CRITICAL: notice {notice} for row {row}", body=BARE.body, fields=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A mail's subject and body; codes: why they are bare."""

    subject: str
    body: str
    codes: tuple[str, ...] = field(default=())


def words(
    notice: int, row: int, kind: str, template: str, facts: Mapping[str, Any], *, level: int = 0, escalate_after: int = 0
) -> Words:
    """The mail for one notice. Only counts and codes of the template's own fields get into it; anything else makes it bare."""
    chosen = TEMPLATES.get(template)
    known = _known(chosen, facts) if chosen else None
    if chosen is None or known is None:
        chosen = BARE_CRITICAL if kind == "critical" else BARE
    values = {**(known or {}), "row": row, "notice": notice}
    body = chosen.body.format_map(values) + (_answer(notice, level, escalate_after) if kind == "critical" else "")
    return Words(subject=chosen.subject.format_map(values), body=body, codes=() if known is not None else ("notice-facts",))


def message_id(notice: int, created_at: int, level: int, to: str, sender: str) -> str:
    """The Message-ID (RFC 5322 section 3.6.4): the same for a repeat of one notice at one level to one person, else another.

    created_at keeps the notices of a register that was set up anew apart from those of the old one.
    """
    named = {"notice": notice, "at": created_at, "level": level, "to": to, "from": sender}
    return f"<rapha.{digest_of(named).removeprefix('sha256:')[:40]}@{sender.rpartition('@')[2]}>"


def after_failure(code: str, kind: str, tries: int, escalate_after: int) -> After:
    """What follows when a mail was not taken. tries: how often it failed before at this level.

    held-up: not this mail's fault (no server, no secure line, no login): tried again, however often, and not counted.
    again: later, and counted. given-up: a critical notice goes on to the next person; at once where this one is refused for good,
    else before the failures last longer than an escalation takes: the pause after the n-th is at most 5 * 2^n seconds.
    """
    if code not in REFUSED_FOR_GOOD | REFUSED_FOR_NOW:
        return "held-up"
    if kind != "critical":
        return "again"
    return "given-up" if code in REFUSED_FOR_GOOD or 20 * 2**tries - 10 > escalate_after else "again"


def is_address(text: object) -> bool:
    """Whether it is one plain mail address in ASCII (RFC 5321 section 4.1.2)."""
    return isinstance(text, str) and _ADDRESS.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Whether it is a host's name or address, without a port."""
    try:
        return _HOST.fullmatch(text) is not None or bool(ip_address(text))
    except ValueError:
        return False


def channel_codes(needs_outside_line: Mapping[str, bool]) -> tuple[str, ...]:
    """What is wrong with the channels that are switched on: name -> whether it goes through port B.

    The line is cut while a job trains, so a critical notice must have a channel that does without it.
    """
    return ("notices-need-outside-line",) if needs_outside_line and all(needs_outside_line.values()) else ()


def wrong_recipients(persons: Sequence[object]) -> bool:
    """Whether a group's list names nobody, or something that is no address."""
    return not persons or not all(map(is_address, persons))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _known(chosen: Template, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The template's own fields; None where the facts are anything else."""
    counts, coded = ({name: facts.get(name) for name in names} for names in (chosen.fields, chosen.coded))
    mine = set(facts) - {"study"} == {*counts, *coded}
    return {**counts, **coded} if mine and all(map(_is_count, counts.values())) and all(map(_is_coded, coded.values())) else None


def _is_coded(value: object) -> bool:
    return isinstance(value, str) and CODES.fullmatch(value) is not None


def _answer(notice: int, level: int, escalate_after: int) -> str:
    again = "" if level == 0 else f"Nobody acknowledged it so far; you are told as number {level + 1}.\n"
    return f"{again}Take it with `rapha notify ack {notice}`; after {escalate_after // 60} minutes the next person is told.\n"
