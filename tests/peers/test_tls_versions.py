"""One profile, archives of several TLS versions: an exception is one endpoint's, and the wire shows which version was spoken."""

import ssl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.archive import Archive
from blocks.profile import Profile, load_profile
from infra.reading import receiver_alone
from rapha.errors import ConfigurationError, PeerError
from tests.fixtures.certificates import Authority, authority
from tests.fixtures.misbehaving import Misbehaving
from tests.fixtures.wire import Wire
from tests.peers.test_dicomweb_secure import answering
from tests.peers.test_dimse_faults import serving

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ENVIRONMENT = {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false"}


def profile(folder: Path, ours: Authority, ends: dict[str, str], security: str = "") -> Profile:
    """ends: name -> what stands in the endpoint beside its titles."""
    cert, key = ours.issue("rapha.test")
    listed = "".join(
        f"  {name}: {{host: 127.0.0.1, ae_title: PACS, calling_ae_title: RAPHA, {more}}}\n" for name, more in ends.items()
    )
    files = f"cert_file: {cert}, key_file: {key}, ca_bundle: {ours.bundle}"
    (folder / "p.yaml").write_text(f"pacs_endpoints:\n{listed}security: {{tls_enabled: true, {files}{security}}}\n")
    return load_profile(folder / "p.yaml", ENVIRONMENT)


def spoken(wire: Wire) -> str:
    """The version in the peer's ServerHello (RFC 8446 section 4.1.3, RFC 5246 section 7.4.1.3); "" where there was none."""
    raw = bytes(wire.came)
    if raw[:1] != b"\x16" or raw[5:6] != b"\x02":
        return ""
    length = int.from_bytes(raw[6:9])
    place = 9 + 2 + 32
    place += 1 + raw[place] + 2 + 1  # session id, suite, compression
    extensions, found = raw[place + 2 : 9 + length], {}
    while len(extensions) >= 4:
        kind, size = int.from_bytes(extensions[:2]), int.from_bytes(extensions[2:4])
        found[kind] = extensions[4 : 4 + size]
        extensions = extensions[4 + size :]
    return {b"\x03\x04": "TLSv1.3"}.get(found.get(43, b""), "TLSv1.2")


def code(step: Callable[[], object]) -> str:
    try:
        step()
    except PeerError as error:
        return error.codes[0]
    return "answered"


def test_an_exception_is_one_endpoints_on_associations_and_requests(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ca")
    old, new = Misbehaving([], tls=serving(ours, only=V12)), Misbehaving([], tls=serving(ours, only=V13))
    with old, new, Wire(old.port) as to_old, Wire(new.port) as to_new, answering(200, b"[]", serving(ours, only=V12)) as (url, _):
        exception = "tls_version: TLS_1_2"
        ends = {
            "primary": f"port: {to_new.port}",
            "old": f"port: {to_old.port}, {exception}",
            "plain": f"port: {old.port}",
            "web": f'port: 0, dicomweb_url: "{url}", {exception}',
            "plainweb": f'port: 0, dicomweb_url: "{url}"',
            "newer": f"port: {new.port}, {exception}",
        }
        there = {name: Archive(one) for name, one in profile(tmp_path, ours, ends).endpoints.items()}
        answers = {name: code(archive.echo) for name, archive in there.items()}
        assert (spoken(to_new), spoken(to_old)) == ("TLSv1.3", "TLSv1.2")
    assert answers == {
        "primary": "answered",
        "old": "answered",
        "plain": "tls-handshake-failed",
        "web": "answered",
        "plainweb": "tls-handshake-failed",
        "newer": "tls-handshake-failed",
    }


def test_an_endpoint_that_says_1_3_is_not_taken_along_by_an_exception_for_all(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ca")
    ends = {"primary": "port: 1", "new": "port: 2, tls_version: TLS_1_3"}
    found = profile(tmp_path, ours, ends, ", tls_version: TLS_1_2").endpoints
    assert [one.tls.version for one in found.values() if one.tls] == ["TLS_1_2", "TLS_1_3"]


@pytest.mark.parametrize("text", ["pacs", "receiver"])
def test_an_exception_from_no_tls_is_refused(tmp_path: Path, text: str) -> None:
    own = ", tls_version: TLS_1_2" if text == "pacs" else ""
    security = "security: {receiver_tls_version: TLS_1_2}\n" if text == "receiver" else ""
    endpoint = f"{{host: 127.0.0.1, port: 1, ae_title: A, calling_ae_title: B{own}}}"
    (tmp_path / "p.yaml").write_text(f"pacs_endpoints:\n  primary: {endpoint}\n{security}")
    with pytest.raises(ConfigurationError) as refused:
        load_profile(tmp_path / "p.yaml", ENVIRONMENT)
    assert refused.value.codes == ("profile-value",)


@pytest.mark.parametrize(
    ("security", "version"),
    [
        ("", "TLS_1_3"),
        (", tls_version: TLS_1_2", "TLS_1_3"),
        (", receiver_tls_version: TLS_1_2", "TLS_1_2"),
        (", receiver_tls_version: TLS_1_2_AND_1_3", "TLS_1_2_AND_1_3"),
    ],
)
def test_the_receiver_speaks_1_3_unless_it_is_told_otherwise_itself(tmp_path: Path, security: str, version: str) -> None:
    profile(tmp_path, authority(tmp_path / "ca"), {"primary": "port: 1, tls_version: TLS_1_2"}, security)
    environment = {**ENVIRONMENT, "RAPHA_STATE_DIR": str(tmp_path), "RAPHA_PROFILE_PATH": str(tmp_path / "p.yaml")}
    environment |= {"RAPHA_RECEIVER_BIND": "127.0.0.1:1", "RAPHA_RECEIVER_KEY_BASE64": "x"}
    argv = receiver_alone(environment, {}, popen=SimpleNamespace).argv  # type: ignore[arg-type]
    assert argv[argv.index("--tls-version") + 1] == version


@pytest.mark.parametrize(
    ("version", "takes"),
    [("TLS_1_3", {V13}), ("TLS_1_2", {V12}), ("TLS_1_2_AND_1_3", {V12, V13})],
)
def test_a_receiver_takes_what_it_was_told_and_no_other(tmp_path: Path, version: Any, takes: set[ssl.TLSVersion]) -> None:
    """Over memory, against OpenSSL; the receiver itself is started by these settings."""
    from blocks.endpoint import TlsSettings
    from tests.properties.test_reading_properties_archive import spoken as over_memory

    ours = authority(tmp_path / "ca")
    cert, key = ours.issue("receiver.test")
    settings = TlsSettings(ca_bundle=ours.bundle, cert_file=cert, key_file=key, version=version)
    for only in (V12, V13):
        client = ssl.create_default_context(cafile=str(ours.bundle))
        client.load_cert_chain(*ours.issue("sender.test"))
        client.minimum_version = client.maximum_version = only
        failure, spoken_version = over_memory(client, settings.server(), "receiver.test")
        assert (failure == "") is (only in takes), (only, failure, spoken_version)
