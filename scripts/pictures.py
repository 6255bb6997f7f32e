"""Pictures of the engine's UI for docs/what-you-see.md, from a demo that is up (`rapha demo --serve --workdir DIR`).

    .venv/bin/python scripts/pictures.py DIR [docs/pictures]

Debian's chromium, headless, over its DevTools protocol: each page is photographed once the words that it must show are there.
"""

import base64
import itertools
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
PATIENCE = 60.0
MAX_BYTES = 300_000
# Where the visible element with exactly these words is: the UI's tabs listen to the mouse, not to click().
PLACE = """(() => {
  const named = [...document.querySelectorAll('*')].filter(e => e.innerText && e.innerText.trim() === %s);
  const box = named.map(e => e.getBoundingClientRect()).filter(b => b.width > 0 && b.height > 0).pop();
  return box ? [box.x + box.width / 2, box.y + box.height / 2] : null;
})()"""
Shot = tuple[str, str, tuple[str, ...], tuple[int, int], str]


class Page:
    """One tab of the browser."""

    def __init__(self, socket: Connection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command and its answer; events in between are skipped."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                return dict(answer["result"])

    def text(self) -> str:
        found = self.call("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
        return str(found["result"].get("value", ""))

    def show(self, url: str, words: tuple[str, ...], size: tuple[int, int], tab: str) -> None:
        """Opens the page, and its tab of that name, and returns once all the words are on it. Raises `TimeoutError`."""
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        if tab:
            self._wait(url, (tab,))
            self._click(tab)
        self._wait(url, words)
        time.sleep(4.0)  # drawings and fonts come after the words

    def _click(self, words: str) -> None:
        time.sleep(1.5)  # what comes late pushes the tabs down
        place = self.call("Runtime.evaluate", expression=PLACE % json.dumps(words), returnByValue=True)["result"]["value"]
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def _wait(self, url: str, words: tuple[str, ...]) -> None:
        until = time.monotonic() + PATIENCE
        while not all(word in self.text() for word in words):
            if time.monotonic() > until:
                raise TimeoutError(f"{url} does not show {words}: {self.text()[:500]}")
            time.sleep(0.3)

    def save(self, path: Path) -> int:
        raw = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        path.write_bytes(raw)
        return len(raw)


@contextmanager
def browser() -> Iterator[Page]:
    """A fresh browser with one empty page."""
    with tempfile.TemporaryDirectory(prefix="rapha-pictures-", ignore_cleanup_errors=True) as profile:
        argv = ["chromium", *QUIET, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            until = time.monotonic() + PATIENCE
            while not (told.exists() and told.read_text().strip()) and time.monotonic() < until:
                time.sleep(0.1)
            port = int(told.read_text().split()[0])
            pages = _json(f"http://127.0.0.1:{port}/json/list")
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(address, max_size=1 << 26) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(10)


def _json(url: str, body: dict[str, Any] | None = None) -> Any:
    raw = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, raw, {"Content-Type": "application/json"}), timeout=30) as answer:
        return json.loads(answer.read())


def _runs(ui: str, flow: str, state: str) -> list[dict[str, Any]]:
    """The flow's runs in this state, the newest first."""
    wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 20}
    return [run for run in _json(f"{ui}/api/flow_runs/filter", wanted) if run["state_type"] == state]


def _artifacts(ui: str, run: str) -> dict[str, str]:
    found = _json(f"{ui}/api/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    return {str(one["key"]).partition("-")[0]: one["id"] for one in found if one["key"]}


def reading(ui: str) -> Iterator[Shot]:
    """(picture, address, words that must be seen, size, tab) of the shift that is at work."""
    for run in _runs(ui, "drain", "RUNNING")[:1]:
        artifacts = _artifacts(ui, run["id"])
        yield "shift.png", f"{ui}/runs/flow-run/{run['id']}", ("prove row 1", "Task Runs"), (1440, 1000), "Task Runs"
        yield "studies.png", f"{ui}/artifacts/artifact/{artifacts['studies']}", ("completed", "2 in this shift"), (1440, 500), ""


def shots(ui: str) -> Iterator[Shot]:
    """The same of the newest training run that is completed."""
    run = next(iter(_runs(ui, "train", "COMPLETED")), None)
    if run is None:
        return
    artifacts = _artifacts(ui, run["id"])
    page, artifact = f"{ui}/runs/flow-run/{run['id']}", f"{ui}/artifacts/artifact/"
    yield "run.png", page, ("verdicts-", "training-", "receipt-"), (1440, 1130), "Artifacts"
    yield "verdicts.png", artifact + artifacts["verdicts"], ("intake", "reconnect"), (1440, 900), ""
    yield "training.png", artifact + artifacts["training"], ("Training:", "%"), (1440, 500), ""
    yield "receipt.png", artifact + artifacts["receipt"], ("sealed result",), (1440, 780), ""


def main(folder: Path, pictures: Path) -> int:
    ports = json.loads((folder / "ports.json").read_bytes())
    pictures.mkdir(parents=True, exist_ok=True)
    with browser() as page:
        ui = f"http://127.0.0.1:{ports['engine']}"
        for name, url, words, size, tab in itertools.chain(shots(ui), reading(ui)):
            page.show(url, words, size, tab)
            written = page.save(pictures / name)
            print(f"{pictures / name}: {written} bytes")
            if written > MAX_BYTES:
                return 1
    return 0


if __name__ == "__main__":
    home = Path(__file__).resolve().parent.parent
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else home / "docs" / "pictures"))
