"""The engine that a command by hand needs: named, and answering, before anything is put into a register."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from blocks.settings import is_plain
from rapha.errors import ConfigurationError, PeerError

URL = "PREFECT_API_URL"
SECONDS = 10.0


def engine_url(environment: Mapping[str, str]) -> str:
    """Raises `ConfigurationError` missing- or bad-prefect-api-url."""
    url = environment.get(URL, "").strip()
    if not url:
        said = f"{URL} is not set: the engine would start a server of its own, which no one configured"
        raise ConfigurationError(["missing-prefect-api-url"], said)
    if not is_plain(url):
        raise ConfigurationError(["bad-prefect-api-url"], f"{URL} is not a plain http(s) URL")
    return url


def engine_answers(environment: Mapping[str, str]) -> None:
    """Raises as `engine_url`, and `PeerError(engine-unreachable)`."""
    url = engine_url(environment)
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=SECONDS, trust_env=False)
    except httpx.HTTPError:
        raise PeerError("engine-unreachable", f"nothing answers at {URL}; does `rapha serve` run?", peer="engine") from None
    if answer.status_code != 200:
        raise PeerError("engine-unreachable", f"what answers at {URL} is no engine that is well", peer="engine")


@contextmanager
def engine_told() -> Iterator[None]:
    """What the engine's client raises, where its server goes away meanwhile, is a failed peer."""
    from flows.stages import ENGINE_FAILED  # the engine takes a second to import

    try:
        yield
    except ENGINE_FAILED:
        raise PeerError("engine-failed", "the engine did not take the run; what is owed stays owed", peer="engine") from None
