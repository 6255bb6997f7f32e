"""The reading service's profile: a YAML file in, frozen settings out; everything that is wrong is named with its line.

Only the keys of `SCHEMA` exist. A secret does not stand in the file: a value of a secret key is `env:NAME` or `file:PATH`. Tags,
aliases and repeated keys are refused, so that what is read is what a person sees.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from blocks.endpoint import Endpoint, ReceiverTls, Retrieve, Store, TlsSettings, TlsVersion
from blocks.settings import is_loopback, is_plain, mode_of
from policies.gate import Mode
from policies.notice import GROUPS, OPERATORS, channel_codes, is_address, is_host, wrong_recipients
from rapha.errors import ConfigurationError
from rapha.files import read_regular

MAX_PROFILE = 1 << 20
SECRETS, FILES = frozenset({"dicomweb_token", "password"}), frozenset({"cert_file", "key_file", "ca_bundle"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
PRIORITIES = ("urgent", "high", "medium", "low")
Kind = type | tuple[str, ...]
_ENDPOINT: dict[str, Kind] = {
    "host": str,
    "port": int,
    "ae_title": str,
    "calling_ae_title": str,
    "vendor": str,
    "dicomweb_url": str,
    "dicomweb_token": str,
    "retrieve": get_args(Retrieve),
    "store": get_args(Store),
    "move_destination": str,
    "max_results": int,
    "polled": bool,
    "timezone": str,
    "priority": PRIORITIES,
    "tls_version": get_args(TlsVersion),
}
# section -> key -> kind. `pacs_endpoints` and `notifications` hold named groups of such keys.
SCHEMA: dict[str, dict[str, Kind]] = {
    "pacs_endpoints.*": _ENDPOINT,
    "security": {
        "tls_enabled": bool,
        "tls_version": get_args(TlsVersion),
        "receiver_tls_version": get_args(ReceiverTls),
        "cert_file": str,
        "key_file": str,
        "ca_bundle": str,
        "mutual_auth": bool,
    },
    "workflow": {
        "automated_polling": bool,
        "polling_interval_seconds": int,
        "poll_overlap_days": int,
        "first_poll_days": int,
        "sweep_days": int,
        "quiet_seconds": int,
        "max_concurrent_studies": int,
        "priority_levels": list,
        "batch_size": int,
        "worker_threads": int,
    },
    "audit": {"enabled": bool, "log_directory": str, "retention_years": int, "encryption_enabled": bool},
    "notifications": {"escalate_after_seconds": int},
    "notifications.email": {
        "enabled": bool,
        "smtp_server": str,
        "smtp_port": int,
        "from_address": str,
        "ca_bundle": str,
        "user": str,
        "password": str,
        "needs_outside_line": bool,
    },
    "notifications.recipients": dict.fromkeys((*GROUPS, OPERATORS), list),
    "notifications.sms": {"enabled": bool, "provider": str},
    "notifications.hl7": {"enabled": bool, "server": str, "port": int},
    "performance": {"connection_pool_size": int, "connection_timeout_seconds": int, "max_retries": int},
    "cache": {"enabled": bool, "directory": str, "max_size_gb": int, "ttl_hours": int},
}
BOUNDS = {
    "port": (0, 65535),
    "smtp_port": (1, 65535),
    "escalate_after_seconds": (60, 86400),
    "polling_interval_seconds": (1, 86400),
    "poll_overlap_days": (1, 366),
    "first_poll_days": (1, 3660),
    "sweep_days": (0, 366),
    "quiet_seconds": (0, 3600),
    "max_concurrent_studies": (1, 50),
    "batch_size": (1, 1000),
    "worker_threads": (1, 64),
    "retention_years": (1, 10),
    "connection_pool_size": (1, 64),
    "connection_timeout_seconds": (1, 600),
    "max_retries": (0, 3),  # within one lease; after that the register tries again, later
    "max_size_gb": (1, 1 << 20),
    "ttl_hours": (1, 1 << 20),
    "max_results": (1, 1_000_000),
}
NOT_BUILT = (
    "notifications.sms",
    "notifications.hl7",
)  # switched on, they refuse: nobody is to rely on a channel that is not there
ALWAYS_ON = {"audit.enabled": "profile-audit-off", "audit.encryption_enabled": "profile-audit-clear"}
AE_TITLE = 16  # characters (PS3.5 section 6.2)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """mode; endpoints by name, in the order of the file; `values`: every other key as given, "section.key" -> value.

    secrets: where the endpoints' tokens stand (`env:NAME`, `file:PATH`); not the tokens. polled: the endpoints that are polled.
    """

    mode: Mode
    endpoints: Mapping[str, Endpoint]
    values: Mapping[str, Any] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    polled: tuple[str, ...] = ("primary",)

    @property
    def variables(self) -> frozenset[str]:
        """The environment variables that the endpoints' tokens are taken from."""
        return frozenset(one.removeprefix("env:") for one in self.secrets if one.startswith("env:"))

    def __repr__(self) -> str:
        return f"Profile({self.mode}, {', '.join(self.endpoints)})"


class _Problems:
    """What is wrong, code by code, each with the place."""

    def __init__(self, path: Path) -> None:
        self._path, self.found = path, dict[str, list[str]]()

    def add(self, code: str, said: str, node: yaml.Node | None = None) -> None:
        line = f" (line {node.start_mark.line + 1})" if node is not None else ""
        self.found.setdefault(code, []).append(f"{self._path.name}: {said}{line}")

    def stop(self) -> None:
        if self.found:
            raise ConfigurationError(
                sorted(self.found), "; ".join(said for code in sorted(self.found) for said in self.found[code])
            )


def load_profile(path: Path, environment: Mapping[str, str] = os.environ) -> Profile:
    """The profile at `path`, or `ConfigurationError` profile-… with a code for each kind of fault, naming key and line.

    Production (`RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION=true`) wants TLS with certificates on both sides and refuses loopback
    hosts; development, which is also meant where that is not set, takes nothing but loopback.
    """
    problems = _Problems(path)
    root = _composed(read_regular(path, MAX_PROFILE, "profile-unreadable"), problems)
    problems.stop()
    values = dict(_leaves(root, "", problems))
    problems.stop()
    mode = mode_of(environment, absent="development")
    _judge(values, mode, problems)
    problems.stop()
    _judge_files(values, environment, problems)
    problems.stop()
    plain = {name: value for name, (value, _) in values.items()}
    tls = _tls(plain) if plain.get("security.tls_enabled") else None
    names = dict.fromkeys(name.split(".")[1] for name in plain if name.startswith("pacs_endpoints."))
    endpoints = {name: _endpoint(name, plain, tls, environment) for name in names}
    secrets = frozenset(str(value) for name, value in plain.items() if name.endswith(".dicomweb_token"))
    polled = tuple(name for name in endpoints if plain.get(f"pacs_endpoints.{name}.polled", name == "primary"))
    others = {name: value for name, value in plain.items() if not name.startswith("pacs_endpoints.")}
    return Profile(mode=mode, endpoints=endpoints, values=others, secrets=secrets, polled=polled)


def _composed(raw: bytes, problems: _Problems) -> yaml.Node | None:
    if len(raw) > MAX_PROFILE:
        problems.add("profile-unreadable", "longer than any profile")
        return None
    try:
        events = list(yaml.parse(raw.decode(), Loader=yaml.SafeLoader))
        if any(isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) for event in events):
            problems.add("profile-yaml", "tags and aliases are not used in a profile")
            return None
        return yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problems.add("profile-yaml", "not YAML" + (f" at line {mark.line + 1}" if mark else ""))
        return None


def _leaves(node: yaml.Node | None, prefix: str, problems: _Problems) -> Iterator[tuple[str, tuple[Any, yaml.Node]]]:
    """(full name, (value, where)) of every key that the schema knows; each other one is a problem."""
    if not isinstance(node, yaml.MappingNode):
        problems.add("profile-shape", f"{prefix or 'the file'} must be a table of keys", node)
        return
    if prefix.startswith("pacs_endpoints.") and not node.value:
        problems.add("profile-missing-key", f"{prefix} has no keys", node)
    seen: set[str] = set()
    for key, below in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problems.add("profile-yaml", f"a key in {prefix or 'the file'} is no text", key)
            continue
        name = f"{prefix}.{key.value}" if prefix else str(key.value)
        if key.value in seen:
            problems.add("profile-repeated-key", f"{name} stands twice", key)
        seen.add(key.value)
        pattern = _pattern(name)
        if pattern is None:
            problems.add("profile-unknown-key", f"{name} is no key of a profile", key)
        elif isinstance(pattern, str):
            yield from _leaves(below, name, problems)
        else:
            value = _value(name, pattern[0], below, problems)
            if value is not None:
                yield name, (value, key)


def _pattern(name: str) -> str | tuple[Kind] | None:
    """A group's name, or (the key's kind,), or None for what does not exist."""
    section, _, key = name.rpartition(".")
    wild = "pacs_endpoints.*" if section.startswith("pacs_endpoints.") and section.count(".") == 1 else section
    if wild in SCHEMA and key in SCHEMA[wild]:
        return (SCHEMA[wild][key],)
    groups = {*SCHEMA, *(group.split(".")[0] for group in SCHEMA)} - {"pacs_endpoints.*"}
    return name if name in groups or section == "pacs_endpoints" else None


def _value(name: str, kind: Kind, node: yaml.Node, problems: _Problems) -> Any:
    key = name.rpartition(".")[2]
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError):  # `2026-13-45`, `0x_`, `=`, a list as a key
        problems.add("profile-type", f"{name} must be {_called(kind)}", node)
        return None
    if isinstance(kind, tuple):
        if value not in kind:
            problems.add("profile-value", f"{name} must be one of {', '.join(kind)}", node)
            return None
    elif type(value) is not kind:
        problems.add("profile-type", f"{name} must be {_called(kind)}", node)
        return None
    if key in BOUNDS and not BOUNDS[key][0] <= value <= BOUNDS[key][1]:
        problems.add("profile-value", f"{name} must lie between {BOUNDS[key][0]} and {BOUNDS[key][1]}", node)
    if key in SECRETS and not str(value).startswith(("env:", "file:")):
        problems.add("profile-secret-in-clear", f"{name} must be env:NAME or file:PATH", node)
    if (key.endswith("ae_title") or key == "move_destination") and not _is_title(value):
        problems.add("profile-value", f"{name} must be 1 to {AE_TITLE} ASCII characters", node)
    if key == "timezone" and not _is_zone(value):
        problems.add("profile-value", f"{name} must be a name of the IANA time zone database, such as Europe/Berlin", node)
    return value


def _is_zone(value: str) -> bool:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _is_title(value: str) -> bool:
    """A VR of AE: no backslash, and not blanks alone (PS3.5 section 6.2)."""
    return 0 < len(value) <= AE_TITLE and value.isascii() and value.isprintable() and "\\" not in value and bool(value.strip())


def _called(kind: Kind) -> str:
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}"
    return {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}[kind]


def _judge(values: Mapping[str, tuple[Any, yaml.Node]], mode: Mode, problems: _Problems) -> None:
    """The rules between keys."""
    names = {name.split(".")[1] for name in values if name.startswith("pacs_endpoints.")}
    if "primary" not in names:
        problems.add("profile-no-primary", "pacs_endpoints needs an endpoint `primary`")
    for name in sorted(names):
        for key in ("host", "port", "ae_title", "calling_ae_title"):
            if f"pacs_endpoints.{name}.{key}" not in values:
                problems.add("profile-missing-key", f"pacs_endpoints.{name}.{key} is missing")
        _judge_endpoint(name, values, problems)
    levels = values.get("workflow.priority_levels")
    if levels and tuple(levels[0]) != PRIORITIES:
        problems.add("profile-value", f"workflow.priority_levels are {', '.join(PRIORITIES)}, in this order", levels[1])
    _judge_switches(values, problems)
    _judge_notices(values, problems)
    _judge_versions(values, problems)
    tls = values.get("security.tls_enabled", (False, None))[0]
    if tls and not {"security.ca_bundle", "security.cert_file", "security.key_file"} <= set(values):
        problems.add("profile-missing-key", "security needs ca_bundle, cert_file and key_file where tls_enabled is true")
    if mode == "production" and (not tls or values.get("security.mutual_auth", (True, None))[0] is False):
        problems.add("profile-clear-dicom", "production needs tls_enabled and mutual_auth")
    _judge_hosts(values, mode, problems)


def _judge_endpoint(name: str, values: Mapping[str, tuple[Any, yaml.Node]], problems: _Problems) -> None:
    """Its name becomes a file's, and it can be reached by one protocol at least."""
    host, port, url = (values.get(f"pacs_endpoints.{name}.{key}", (None, None)) for key in ("host", "port", "dicomweb_url"))
    where = host[1] or port[1] or url[1]
    if not _NAME.fullmatch(name):
        problems.add("profile-value", "an endpoint's name is 1 to 64 letters, digits, - and _", where)
    if port[0] == 0 and url[0] is None:
        problems.add("profile-value", f"pacs_endpoints.{name}.port is 0, and there is no dicomweb_url", port[1])
    if port[0] and host[0] is not None and not str(host[0]).strip():
        problems.add("profile-value", f"pacs_endpoints.{name}.host is empty", host[1])
    if url[0] is not None and not is_plain(url[0]):
        problems.add("profile-value", f"pacs_endpoints.{name}.dicomweb_url is not a plain http(s) URL", url[1])


def _judge_files(values: Mapping[str, tuple[Any, yaml.Node]], environment: Mapping[str, str], problems: _Problems) -> None:
    """What the profile names is there: the files of TLS where they are used, and the archives' tokens."""
    used = {"security.": "security.tls_enabled", "notifications.email.": "notifications.email.enabled"}
    for name, (value, node) in values.items():
        section, _, key = name.rpartition(".")
        if key in FILES and values.get(used[f"{section}."], (False, None))[0] and not Path(value).is_file():
            problems.add("profile-file-missing", f"{name} names no file that can be read", node)
        if key == "dicomweb_token":  # the mail server's password is asked for by whoever sends mail, and by nobody else
            try:
                secret(value, environment)
            except ConfigurationError as error:
                problems.add(error.codes[0], f"{name}: {error.message}", node)


def _judge_switches(values: Mapping[str, tuple[Any, yaml.Node]], problems: _Problems) -> None:
    """What is always on, and what cannot be switched on yet."""
    for key, code in ALWAYS_ON.items():
        if key in values and values[key][0] is not True:
            problems.add(
                code, f"{key} is always true: what is done to a patient's data is written down, encrypted", values[key][1]
            )
    asked = [node for name, (_, node) in values.items() if name.startswith("cache.")]
    if asked and values.get("cache.enabled", (True, None))[0]:
        problems.add(
            "not-built", "a cache of studies is not built: set cache.enabled to false, or leave the section out", asked[0]
        )
    for channel in NOT_BUILT:
        on = values.get(f"{channel}.enabled")
        if on and on[0]:
            problems.add("not-built", f"{channel} is not built yet: switch it off", on[1])


def _judge_versions(values: Mapping[str, tuple[Any, yaml.Node]], problems: _Problems) -> None:
    """An exception from a TLS that is not there would be read and ignored."""
    if values.get("security.tls_enabled", (False, None))[0]:
        return
    for name, (_, node) in values.items():
        if name.endswith("tls_version") and name != "security.tls_version":
            problems.add("profile-value", f"{name} has no meaning without security.tls_enabled", node)


def _judge_notices(values: Mapping[str, tuple[Any, yaml.Node]], problems: _Problems) -> None:
    """E-mail that is switched on is whole, and is there whenever a critical finding is."""
    _judge_addresses(values, problems)
    email, persons = "notifications.email", [f"notifications.recipients.{group}" for group in GROUPS]
    if (f"{email}.user" in values) is not (f"{email}.password" in values):
        problems.add("profile-missing-key", f"{email} needs both user and password, or neither")
    enabled, switch = values.get(f"{email}.enabled", (False, None))
    if not enabled:
        return
    for name in (f"{email}.smtp_server", f"{email}.from_address", f"{email}.needs_outside_line", *persons):
        if name not in values:
            problems.add("profile-missing-key", f"{name} is missing", switch)
    outside, where = values.get(f"{email}.needs_outside_line", (False, None))
    for code in channel_codes({"email": outside}):
        problems.add(code, f"{email}.needs_outside_line: that line is cut while a job trains; name a server on this side", where)


def _judge_addresses(values: Mapping[str, tuple[Any, yaml.Node]], problems: _Problems) -> None:
    for name, (value, node) in values.items():
        if name == "notifications.email.from_address" and not is_address(value):
            problems.add("profile-value", f"{name} must be one mail address", node)
        if name == "notifications.email.smtp_server" and not is_host(value):
            problems.add("profile-value", f"{name} must be a host's name or address", node)
        if name.startswith("notifications.recipients.") and wrong_recipients(value):
            problems.add("profile-value", f"{name} must be mail addresses, in the order in which they are told", node)


def _judge_hosts(values: Mapping[str, tuple[Any, yaml.Node]], mode: Mode, problems: _Problems) -> None:
    for name, (value, node) in values.items():
        url = value if name.endswith(".dicomweb_url") else None
        if name.endswith((".host", ".smtp_server")):
            url = f"tcp://[{value}]" if value.count(":") > 1 else f"tcp://{value}"
        if url is None or not value:
            continue
        if is_loopback(url) is (mode == "production"):
            said = "names this machine; production needs the real one" if mode == "production" else "is not this machine"
            problems.add("profile-host", f"{name} {said}", node)
        if mode == "production" and url.startswith("http:"):
            problems.add("profile-clear-dicom", f"{name} must be https in production", node)


def _tls(plain: Mapping[str, Any]) -> TlsSettings:
    return TlsSettings(
        ca_bundle=Path(plain["security.ca_bundle"]),
        cert_file=Path(plain["security.cert_file"]),
        key_file=Path(plain["security.key_file"]),
        version=plain.get("security.tls_version", "TLS_1_3"),
        mutual_auth=plain.get("security.mutual_auth", True),
    )


def _endpoint(name: str, plain: Mapping[str, Any], tls: TlsSettings | None, environment: Mapping[str, str]) -> Endpoint:
    prefix = f"pacs_endpoints.{name}."
    own = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    own.pop("polled", None)  # the schedule's affair, not the connection's
    if version := own.pop("tls_version", None):
        tls = replace(tls, version=version) if tls else None
    if "dicomweb_token" in own:
        own["dicomweb_token"] = secret(own["dicomweb_token"], environment)
    if timeout := plain.get("performance.connection_timeout_seconds"):
        own["connect_seconds"] = float(timeout)
    own["pool_size"] = plain.get("performance.connection_pool_size")
    return Endpoint(name=name, tls=tls, **own)


def secret(reference: str, environment: Mapping[str, str]) -> str:
    """What `env:NAME` or `file:PATH` holds. `ConfigurationError` profile-secret-missing."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        found = environment.get(where, "")
    else:
        try:
            found = read_regular(Path(where), 4096, "profile-secret-missing").decode().strip()
        except UnicodeDecodeError:
            raise ConfigurationError(["profile-secret-missing"], f"{reference} is no text") from None
    if not found:
        raise ConfigurationError(["profile-secret-missing"], f"{reference} holds no secret")
    return found
