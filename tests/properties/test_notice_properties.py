"""Telling, whatever servers answer and people do: one level at a time, each in its turn, the acknowledged never again."""

import secrets
import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blocks.mail import MailServer, Notifications
from blocks.reading import FoundStudy, Notice, ReadingRegister
from policies.notice import REFUSED_FOR_GOOD, REFUSED_FOR_NOW, NoticeRules, message_id
from rapha.errors import PeerError, Refusal
from tasks.reading.tell import HOLD_SECONDS, tell

KEY = secrets.token_bytes(32)
DELAY = 900
DOWN = ("mail-unreachable", "mail-timeout", "mail-no-starttls", "mail-login")
ANSWERS = st.sampled_from(["taken"] * 3 + [*REFUSED_FOR_GOOD, *REFUSED_FOR_NOW, *DOWN])


class Killed(BaseException):
    """The process ends here."""


class Scripted(MailServer):
    """A server that answers as the machine says; `taken`: recipient, Message-ID, subject, time, whether the sender lived on."""

    def send(self, to, subject, body, message_id, *, urgent=False):
        if self.answers.get(to, "taken") != "taken":
            raise PeerError(self.answers[to], "no", peer="mail")
        self.taken.append((to, message_id, subject, self.clock(), not self.killed_after))
        if self.killed_after:
            raise Killed


class Telling(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.register = ReadingRegister.at(Path(self.folder.name) / "reading.sqlite", KEY)
        self.now, self.acknowledged, self.kinds = 1_800_000_000, {}, []
        self.server = Scripted(host="localhost", from_address="rapha@hospital.example")
        for name, value in {"answers": {}, "taken": [], "killed_after": False, "clock": lambda: self.now}.items():
            object.__setattr__(self.server, name, value)

    @initialize(persons=st.integers(1, 3), kinds=st.lists(st.sampled_from(["critical", "result"]), min_size=1, max_size=3))
    def owe(self, persons, kinds):
        self.persons = tuple(f"{number}@hospital.example" for number in range(persons))
        self.by = Notifications(server=self.server, rules=NoticeRules(persons={"radiology": self.persons}, escalate_after=DELAY))
        for number, kind in enumerate(kinds):
            self.register.found("pacs", FoundStudy(study_uid=f"1.2.{number}"), self.now)
            lease = self.register.claim("worker", self.now, 60)
            self.register.finish(lease, self.now, notices=[Notice(kind=kind, recipient_group="radiology", template=kind)])
            self.kinds.append(kind)

    @rule(seconds=st.sampled_from([1, 30, 60, HOLD_SECONDS, DELAY, 3600]))
    def wait(self, seconds):
        self.now += seconds

    @rule(person=st.integers(0, 2), answer=ANSWERS)
    def answer(self, person, answer):
        self.server.answers[f"{person}@hospital.example"] = answer

    @rule()
    def tell(self):
        before = len(self.server.taken)
        told = tell(self.register, self.by, self.now)
        assert told.sent == len(self.server.taken) - before
        news = [subject for _, _, subject, _, _ in self.server.taken[before:]]
        assert news == sorted(news, key=lambda subject: "CRITICAL" not in subject), "the critical first"

    @rule()
    def tell_and_die(self):
        """Killed after a server said yes, before the mark."""
        object.__setattr__(self.server, "killed_after", True)
        try:
            tell(self.register, self.by, self.now)
        except Killed:
            pass
        finally:
            object.__setattr__(self.server, "killed_after", False)

    @rule(number=st.integers(1, 3))
    def acknowledge(self, number):
        try:
            if self.register.acknowledge(number, "dr", self.now):
                self.acknowledged[number] = len(self.server.taken)
        except Refusal as refusal:
            assert refusal.codes[0] in ("notice-not-sent", "notice-unknown")

    def told_of(self, number):
        return [one for one in self.server.taken if f"otice {number} " in one[2] or f"otice {number})" in one[2]]

    def levels_of(self, notice):
        """(level, recipient, time, marked) of every mail about it, by its Message-ID."""
        names = {
            message_id(notice.id, notice.created_at, level, to, self.server.from_address): level
            for level in range(notice.level + 1)
            for to in self.persons
        }
        return [(names[name], to, at, marked) for to, name, _, at, marked in self.told_of(notice.id)]

    @invariant()
    def each_in_turn_and_for_as_long_as_it_takes(self):
        for notice in self.register.notices():
            told = self.levels_of(notice)
            assert all(to == self.persons[level % len(self.persons)] for level, to, _, _ in told), "the right person"
            assert [level for level, *_ in told] == sorted(level for level, *_ in told), "never two levels at once"
            assert notice.kind == "critical" or notice.level == 0
            for (level, _, at, marked), (then, _, later, _) in pairwise(told):
                assert then != level or not marked, "told once, unless the sender died before its mark"
                assert then == level or not marked or later - at >= DELAY, "who was told has his time"

    @invariant()
    def what_is_marked_as_sent_was_sent(self):
        for notice in self.register.notices():
            if notice.state == "sent":
                assert self.levels_of(notice)[-1][0] == notice.level

    @invariant()
    def the_acknowledged_is_never_told_again(self):
        for number, count in self.acknowledged.items():
            assert not [one for one in self.server.taken[count:] if one in self.told_of(number)]

    def teardown(self):
        """Once every server answers, each notice that nobody has reaches somebody, and a critical one the next, too."""
        if self.kinds:
            self.server.answers.clear()
            for _ in range(4):
                self.now += 2 * 3600
                tell(self.register, self.by, self.now)
            self.each_in_turn_and_for_as_long_as_it_takes()
            self.what_is_marked_as_sent_was_sent()
            self.the_acknowledged_is_never_told_again()
            for notice in self.register.notices():
                assert notice.state == "acknowledged" or self.told_of(notice.id)
                if notice.kind == "critical" and notice.state != "acknowledged" and len(self.persons) > 1:
                    assert len({to for _, to, _, _ in self.levels_of(notice)}) > 1
        self.register.close()
        self.folder.cleanup()


Telling.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestTelling = Telling.TestCase
