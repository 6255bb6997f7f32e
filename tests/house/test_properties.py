"""docs/properties.md is true: 48 properties in 14 categories, each with a function, a test and a mutation that exist."""

import ast
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests.house.properties_table import HOME, Property, categories, defects, properties

ROWS = properties()
NOW = [one for one in ROWS if one.function]


@cache
def names_in(path: Path) -> frozenset[str]:
    """What pytest collects by name in a file: functions, and classes that a name is given to."""
    tree = ast.parse(path.read_bytes())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    given = {target.id for target in targets if isinstance(target, ast.Name) and target.id.startswith("Test")}
    return frozenset(functions | given)


def is_test(named: str) -> bool:
    path, _, name = named.partition("::")
    file = HOME / path
    return file.is_file() and name.startswith(("test_", "Test")) and name in names_in(file)


def test_there_are_48_in_14_categories() -> None:
    assert [one.number for one in ROWS] == list(range(1, 49))
    assert len(categories()) == 14 and Counter(one.category for one in ROWS) == categories()


def test_every_row_says_what_and_why() -> None:
    assert [one.number for one in ROWS if not one.sentence.endswith(".") or not one.reason] == []


@pytest.mark.parametrize("row", NOW, ids=[str(one.number) for one in NOW])
def test_every_row_names_a_function_tests_and_a_mutation_that_exist(row: Property) -> None:
    module, _, name = row.function.partition(":")
    assert callable(getattr(import_module(module), name))
    assert row.tests and [named for named in row.tests if not is_test(named)] == []
    assert row.source.read_text().count(row.old) == 1, "the code that the mutation replaces stands once in the module"
    assert row.old != row.new


def test_every_known_defect_of_others_has_its_test() -> None:
    assert len(defects()) == 11
    assert [defect for defect, _, tests in defects() if not tests or not all(map(is_test, tests))] == []
