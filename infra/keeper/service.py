"""The keeper's verbs and its watchdog."""

import contextlib
import secrets
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from infra.keeper import proofs
from infra.keeper.network import Line
from infra.keeper.state import State, Token
from policies.cut import ways_out
from rapha.canonical import is_digest
from rapha.errors import PeerError, Refusal

Message = dict[str, Any]
_WATCHED_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 addresses and routes, IPv6 addresses and routes


class Keeper:
    """Owner of the line: up only while nobody holds a token. One lock, since the line is one."""

    def __init__(self, line: Line, state: State, ledger: Path, holders: dict[str, Path]) -> None:
        self._line, self._state, self._ledger, self._holders = line, state, ledger, holders
        self._lock = threading.RLock()
        self._held = state.load()
        if self._held.any:
            line.down()  # cut until proven clean (C14)
        state.save(self._held)

    def cut(self, job: str, attempt: int) -> Message:
        """Control probe, token on disk, line down, proof. What is on disk first decides what a crash leaves: a cut line."""
        with self._lock:
            name = f"{job}#{attempt}"
            if self._held.unknown or (self._held.tokens and name not in self._held.tokens):
                self.sweep()  # what a dead flow left may be proven gone by now; this caller's next try finds the line
                raise PeerError("keeper-busy", "another attempt holds the line", peer="keeper")
            if name not in self._held.tokens:
                control, at = self._line.reached(), int(time.time())
                self._held.routes = self._line.wan_routes()
                self._held.tokens[name] = Token(job, attempt, secrets.token_hex(32), control, at, -1)
                self._state.save(self._held)
            self._line.down()
            token = self._held.tokens[name]
            if token.sent < 0:
                token.sent = self._line.facts().sent
                self._state.save(self._held)
            return self._proof(self._held.tokens[name])

    def prove(self, job: str, attempt: int) -> Message:
        with self._lock:
            return self._proof(self._token(job, attempt))

    def register(self, job: str, attempt: int, pidns: int) -> Message:
        with self._lock:
            token = self._token(job, attempt)
            self._look()
            if token.broken:
                raise Refusal(["cut-broken", *token.broken])
            token.pidns = sorted({*token.pidns, pidns})
            self._state.save(self._held)
            return {}

    def watch(self, job: str, attempt: int) -> Message:
        with self._lock:
            token = self._held.tokens.get(f"{job}#{attempt}")
            return {"broken": ["cut-not-held"] if token is None else list(token.broken)}

    def restore(self, job: str, attempt: int, value: str) -> Message:
        with self._lock:
            token = self._held.tokens.get(f"{job}#{attempt}")
            matched = token is not None and secrets.compare_digest(token.value, value)
            return self._restored(token, matched, job, attempt)

    def sweep(self) -> Message:
        """Every token by the same proofs, but without its value: what a dead flow left behind."""
        with self._lock:
            tokens = list(self._held.tokens.values())
            done = [t.name for t in tokens if self._restored(t, True, t.job, t.attempt)["restored"]]
            if self._held.unknown and not self._held.tokens and self._nothing_anywhere():
                self._give_back("unknown")
                done.append("unknown")
            kept = [*self._held.tokens, *(["unknown"] if self._held.unknown else [])]
            return {"restored": done, "kept": kept}

    def status(self) -> Message:
        with self._lock:
            facts = self._line.facts()
            return {
                "tokens": sorted(self._held.tokens),
                "unknown": self._held.unknown,
                "line_up": self._line.is_up(),
                "ways_out": list(ways_out(facts)),
                "netns": facts.inode,
            }

    def watch_for_ever(self) -> None:
        """The watchdog: woken by the kernel at every change of a link, address or route, and four times a second anyhow."""
        while True:
            try:
                with IPRoute() as netlink:
                    netlink.bind(groups=_WATCHED_GROUPS)
                    netlink.settimeout(0.25)
                    self._watch_with(netlink)
            except (NetlinkError, OSError):
                time.sleep(0.05)

    def _watch_with(self, netlink: IPRoute) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                netlink.get()
            with self._lock:
                self._look()

    def _look(self) -> None:
        """Judges the namespace as it is now; a way out while a token is held is cut at once and kept on record (C02)."""
        if not self._held.any:
            return
        try:
            codes = ways_out(self._line.facts())
        except PeerError as error:
            codes = error.codes
        if not codes:
            return
        try:
            self._line.down()
        except PeerError as error:
            codes = (*codes, *error.codes)
        for token in self._held.tokens.values():
            new = [code for code in codes if code not in token.broken]
            if new:
                token.broken.extend(new)
                self._state.save(self._held)

    def _proof(self, token: Token) -> Message:
        after, other = self._line.probe(over_wan=True), self._line.probe(over_wan=False)
        facts = self._line.facts()
        moved = ["cut-traffic"] if facts.sent != token.sent else []
        return {
            "control": token.control,
            "control_at": token.control_at,
            "after": after,
            "after_any": other,
            "token": token.value,
            "held": True,
            "broken": [*token.broken, *moved],
            "network": asdict(facts),
        }

    def _token(self, job: str, attempt: int) -> Token:
        token = self._held.tokens.get(f"{job}#{attempt}")
        if token is None:
            raise Refusal(["cut-not-held"])
        return token

    def _restored(self, token: Token | None, matched: bool, job: str, attempt: int) -> Message:
        held_by = proofs.holding(self._holders, job, attempt)
        alive = proofs.processes(token.pidns) if token else 0
        ending = proofs.ending(self._ledger, job, attempt)
        failed = {
            "reconnect-token": not matched,
            "reconnect-holder": bool(held_by) or not self._holders,
            "reconnect-alive": alive > 0,
            "reconnect-not-sealed": not ending,
        }
        codes = [code for code, bad in failed.items() if bad]
        if token is not None and not codes:
            self._give_back(token.name)
        return {
            "restored": token is not None and not codes,
            "token_matched": matched,
            "holders": sorted(self._holders),
            "holding": list(held_by),
            "processes": alive,
            "ending": ending,
            "line_up": self._line.is_up(),
            "codes": codes,
        }

    def _give_back(self, name: str) -> None:
        """The line first, the record after: a crash between them is a token too many, and the next start cuts."""
        others = set(self._held.tokens) - {name}
        if not others and (name == "unknown" or not self._held.unknown):
            self._line.up(self._held.routes)
        self._held.tokens.pop(name, None)
        self._held.unknown = self._held.unknown and name != "unknown"
        self._state.save(self._held)

    def _nothing_anywhere(self) -> bool:
        return bool(self._holders) and not proofs.holding(self._holders, "", 0) and proofs.open_attempts(self._ledger) == 0


class KeeperSession:
    """One connection. Tokens do not end with it: the line outlives the flow."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def closed(self) -> None:
        """Nothing is held for a connection."""

    def do_status(self, message: Message, fds: list[int]) -> Message:
        return self._keeper.status()

    def do_cut(self, message: Message, fds: list[int]) -> Message:
        return self._keeper.cut(*_named(message))

    def do_prove(self, message: Message, fds: list[int]) -> Message:
        return self._keeper.prove(*_named(message))

    def do_register(self, message: Message, fds: list[int]) -> Message:
        pidns = message.get("pidns")
        if type(pidns) is not int or pidns <= 0:
            raise Refusal(["keeper-bad-request"])
        return self._keeper.register(*_named(message), pidns)

    def do_watch(self, message: Message, fds: list[int]) -> Message:
        return self._keeper.watch(*_named(message))

    def do_restore(self, message: Message, fds: list[int]) -> Message:
        return self._keeper.restore(*_named(message), str(message.get("token", "")))

    def do_sweep(self, message: Message, fds: list[int]) -> Message:
        return self._keeper.sweep()


def _named(message: Message) -> tuple[str, int]:
    job, attempt = message.get("job"), message.get("attempt")
    if not is_digest(job) or type(attempt) is not int or attempt < 1:
        raise Refusal(["keeper-bad-request"])
    return str(job), attempt
