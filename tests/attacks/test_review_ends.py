"""What is read or written late in an attempt, when a disk or a file is no longer what it was."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import ending
from flows.training import _Run
from infra.serve import private
from policies.records import Record, records_root, write_records
from rapha.errors import ConfigurationError, PeerError, Refusal

ONE = Record("1" * 64, "2" * 64, "sha256:" + "3" * 64, None)
TWO = Record("4" * 64, "5" * 64, "sha256:" + "6" * 64, None)


def run_with(path: Path, root: str) -> Any:
    settings = SimpleNamespace(path=lambda name: path)
    run = SimpleNamespace(node=SimpleNamespace(settings=settings))
    run.manifest = SimpleNamespace(evidence=SimpleNamespace(root=root))
    return run


@pytest.mark.parametrize("content", [write_records([TWO]), write_records([ONE, TWO]), b"", None])
def test_A09_E24_the_guard_searches_by_the_manifests_records_or_not_at_all(tmp_path: Path, content: bytes | None) -> None:
    path, root = tmp_path / "records.jsonl", records_root([ONE])
    path.write_bytes(write_records([ONE]))
    assert _Run._records(run_with(path, root)) == (ONE,)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal) as refused:
        _Run._records(run_with(path, root))
    assert refused.value.codes == ("records-root-differs",)


def test_H05_a_full_disk_under_the_report_does_not_keep_the_line_from_being_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").mkdir()  # as unwritable as a full disk
    said: list[str] = []
    attempt: Any = SimpleNamespace(
        job="sha256:" + "0" * 64, number=1, mode="development", folder=tmp_path, record=lambda *a, **k: said.append("record")
    )
    register = SimpleNamespace(finish=lambda *a, **k: said.append("finish"))
    node: Any = SimpleNamespace(register=register)
    monkeypatch.setattr(ending, "withhold", lambda attempt: said.append("withhold"))
    monkeypatch.setattr(ending, "free_line", lambda node: said.append("free"))
    monkeypatch.setattr(ending, "send_due", lambda node, job: said.append("send"))
    ending.conclude(ending.Ending(node, SimpleNamespace(), attempt, PeerError("x", "x", peer="chain")))  # type: ignore[arg-type]
    assert said == ["record", "finish", "withhold", "free", "send"]


def test_a_state_folder_that_others_may_enter_is_not_served_from(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert private(state).stat().st_mode & 0o077 == 0
    for mode in (0o755, 0o710, 0o701):
        state.chmod(mode)
        with pytest.raises(ConfigurationError) as refused:
            private(state)
        assert refused.value.codes == ("state-open-to-others",)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        private(tmp_path / "file" / "state")
