"""docs/profile.md and the profile's schema name the same keys; each key's effect is named with the file in which it is."""

import re
from pathlib import Path

from blocks.profile import SCHEMA

HOME = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([a-z0-9_.*]+)` \| (.+?) \| (.+) \| (.+?) \|$", re.MULTILINE)
FILE = re.compile(r"`((?:blocks|flows|policies|tasks|infra)/[a-z_/]+\.py)`")
NAMED = re.compile(r"as `([a-z0-9_.]+)`")
ELSEWHERE = ("notifications",)  # sections whose keys stand on a page of their own name


def rows() -> list[tuple[str, str]]:
    """(key, effect)."""
    return [(key, effect) for key, _, effect, _ in ROW.findall((HOME / "docs" / "profile.md").read_text())]


def keys() -> set[str]:
    return {f"{section}.{key}" for section, listed in SCHEMA.items() for key in listed}


def code(file: str) -> str:
    """The file's text; of the schema's own file, what stands below the schema and its bounds."""
    text = (HOME / file).read_text()
    return text.partition("\nBOUNDS = {")[2].partition("\n}")[2] if file == "blocks/profile.py" else text


def test_the_table_has_the_schemas_keys_and_no_others() -> None:
    told = [key for key, _ in rows()]
    assert len(told) == len(set(told)), "a key stands twice"
    assert set(told) <= keys()
    other = "".join((HOME / "docs" / f"{section}.md").read_text() for section in ELSEWHERE)
    lost = [key for key in keys() - set(told) if not key.startswith(ELSEWHERE) or key.rpartition(".")[2] not in other]
    assert lost == []


def test_each_keys_effect_is_in_the_file_that_is_named() -> None:
    """Under the key's own name, or under the one that the row gives it ("as `…`")."""
    missing = []
    for key, effect in rows():
        files, names = FILE.findall(effect), [key.rpartition(".")[2], *NAMED.findall(effect)]
        texts = [code(file) for file in files if (HOME / file).is_file()]
        if not files or len(texts) != len(files) or not any(name in text for name in names for text in texts):
            missing.append(key)
    assert missing == []
