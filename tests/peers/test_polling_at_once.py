# ruff: noqa: F811 - fixtures are imported by name
"""Real polls at once, each with a register of its own, of one archive that new studies come to meanwhile, and late ones."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import sleep
from typing import Any

from sqlalchemy import text

from blocks.database import open_engine
from blocks.reading import ReadingRegister
from policies.polling import PollSettings
from tasks.reading.poll import PollOutcome, poll
from tests.peers.test_reading_register import KEY, postgres, url  # noqa: F401
from tests.stages.test_poll import NOW, TODAY, YESTERDAY, Shelves

STUDIES, POLLERS, POLLS = 40, 4, 5
SETTINGS = PollSettings(pacs="pacs", most=9, smallest=60)


@dataclass
class Receiving(Shelves):
    """With each question a study comes that was made hours ago or just now, and the answer takes its time: polls overlap."""

    coming: dict[str, Any] = field(default_factory=dict)
    limit: int = 9
    lock: Any = field(default_factory=threading.Lock)
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    def find_studies(self, keys: Any) -> Any:
        with self.lock:
            answers = super().find_studies(keys)
            if self.coming:
                uid = self.chance.choice(sorted(self.coming))
                self.studies[uid] = self.coming.pop(uid)
            pause = self.chance.random() / 50
        sleep(pause)
        return answers


def made() -> dict[str, Any]:
    """Times all over two days: most of them long before the watermark by the time that they come."""
    return {
        f"1.9.{n}": ((TODAY, YESTERDAY)[n % 2], f"{n % 8:02d}{n:02d}00", {f"1.9.{n}.1": [f"1.9.{n}.1.1"]}) for n in range(STUDIES)
    }


@contextmanager
def watched(url: str) -> Iterator[list[int]]:
    """Every watermark that was seen, in the order in which it was."""
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        register = ReadingRegister(url, KEY)
        while not over.is_set():
            mark = register.watermark("pacs")
            if mark is not None:
                seen.append(mark.at)
            sleep(0.002)
        register.close()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(30)


def test_polls_at_once_find_each_study_once_and_the_watermark_never_moves_back(url: str) -> None:
    archive = Receiving(coming=made())
    start = threading.Barrier(POLLERS)

    def poller(number: int) -> list[PollOutcome]:
        """Its clock is up to eight minutes off the others', less than the skew that a poll allows for."""
        mine = ReadingRegister(url, KEY)
        start.wait(30)
        try:
            return [poll(mine, archive, SETTINGS, NOW + 60 * turn - 160 * number) for turn in range(POLLS)]
        finally:
            mine.close()

    with watched(url) as marks, ThreadPoolExecutor(POLLERS) as pool:
        outcomes = [one for found in pool.map(poller, range(POLLERS)) for one in found]
    archive.studies |= archive.coming
    archive.coming.clear()
    last = ReadingRegister(url, KEY)
    outcomes.append(poll(last, archive, SETTINGS, NOW + 600))
    rows = [last.row_of("pacs", uid) for uid in made()]
    assert None not in rows, "none is missed"
    engine = open_engine(url)
    with engine.begin() as connection:
        names = Counter(name for (name,) in connection.execute(text("SELECT name FROM reading_studies")))
    engine.dispose()
    assert len(names) == STUDIES == len(set(rows)) and set(names.values()) == {1}, "a study is one row"
    told = Counter(row for one in outcomes for row in one.rows)
    assert sum(one.new for one in outcomes) == STUDIES and set(told.values()) == {1}, "and new to one poll"
    assert sum(one.changed for one in outcomes) == 0
    assert marks == sorted(marks) and len(set(marks)) > 1, "the watermark never moves back"
    mark = last.watermark("pacs")
    assert mark is not None and mark.at >= marks[-1]
    last.close()
