"""docs/properties.md as rows, for the test that holds it to the code and for the mutations that are made of it."""

import re
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).parents[2]
PAGE = HOME / "docs" / "properties.md"
NEXT = "next issue"
_SPAN = re.compile(r"`([^`]*)`")
_CATEGORY = re.compile(r"## (.+) \((\d+)\)")


@dataclass(frozen=True)
class Property:
    """One row. function: `module:name`, "" for the next issue; old, new: what the mutation replaces."""

    category: str
    number: int
    sentence: str
    reason: str
    function: str
    tests: tuple[str, ...]
    old: str
    new: str

    @property
    def source(self) -> Path:
        """The file of the function's module."""
        return HOME / (self.function.partition(":")[0].replace(".", "/") + ".py")


def categories() -> dict[str, int]:
    """Name -> how many properties its heading says."""
    return {match[1]: int(match[2]) for match in _CATEGORY.finditer(PAGE.read_text())}


def properties() -> list[Property]:
    """Every row of the categories' tables."""
    found, category = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            match = _CATEGORY.fullmatch(line)
            category = match[1] if match else ""
        elif category and re.match(r"\| \d+ \|", line):
            found.append(_row(category, line))
    return found


def defects() -> list[tuple[str, str, tuple[str, ...]]]:
    """(what the other does, what ours does, test ids) of the table of known defects."""
    section = PAGE.read_text().partition("## Known defects of others, and our test\n")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows]
    return [(cell[0].strip("| "), cell[1], tuple(_SPAN.findall(cell[2]))) for cell in cells]


def _row(category: str, line: str) -> Property:
    number, sentence, reason, function, tests, mutation = [cell.strip() for cell in line.strip("|").split(" | ")]
    if NEXT in (function, tests, mutation):
        assert function == tests == mutation.strip("| ") == NEXT, f"row {number} is of the next issue in a part"
        return Property(category, int(number.strip("| ")), sentence, reason, "", (), "", "")
    old, new = _SPAN.findall(mutation)
    (named,) = _SPAN.findall(function)
    return Property(category, int(number.strip("| ")), sentence, reason, named, tuple(_SPAN.findall(tests)), old, new)
