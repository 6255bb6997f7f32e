"""Writes policies/known_wheels.py from an environment in which the wheels are installed and were checked by a person.

.venv/bin/python scripts/known_wheels.py [NAME ...]  > policies/known_wheels.py
.venv/bin/python scripts/known_wheels.py --json NAME ...   (a table of a hospital's own)
"""

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
DEFAULT = ("torch", "numpy", "safetensors")


def with_needs(names: list[str]) -> list[str]:
    """The names and what they need, extras left out."""
    seen: dict[str, None] = {}
    queue = list(names)
    while queue:
        name = queue.pop(0)
        if name in seen:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        seen[name] = None
        queue += [re.split(r"[^A-Za-z0-9._-]", need)[0].lower() for need in needs if "extra ==" not in need]
    return sorted(seen)


def row(name: str) -> dict[str, str]:
    from policies.wheels import read_record

    found = distribution(name)
    record = read_record((found.read_text("RECORD") or "").encode())
    if record is None or not record.files:
        sys.exit(f"{name}: no readable RECORD")
    return {"name": name, "version": found.version, "record": record.digest}


def main(arguments: list[str]) -> None:
    names = [a for a in arguments if not a.startswith("--")] or list(DEFAULT)
    rows = [row(name) for name in with_needs(names)]
    if "--json" in arguments:
        print(json.dumps(rows, indent=1))
        return
    print('"""Wheels whose files pass the scan by digest. Written by scripts/known_wheels.py; do not edit."""\n')
    print("KNOWN_WHEELS: tuple[dict[str, str], ...] = (")
    for item in rows:
        print(f'    {{"name": "{item["name"]}", "version": "{item["version"]}", "record": "{item["record"]}"}},')
    print(")")


if __name__ == "__main__":
    main(sys.argv[1:])
