"""`rapha attest verify`, `attest collateral import`, `node enrol` as a person runs them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cyclopts
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from flows.console.attest import register
from infra.attester.synthetic import Machine, Tcb
from rapha.console.app import run
from tests.fixtures.attestation import MOMENT, SAMPLES, bench

SGX = {
    "measurements": ["33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"],
    "tcb_exceptions": [{"status": "ConfigurationAndSWHardeningNeeded", "advisories": ["INTEL-SA-00289", "INTEL-SA-00615"]}],
}
TDX = {
    "tee_types": ["tdx"],
    "quote_versions": [4, 5],
    "measurements": [
        "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407de03ae6dc5f87f27428b2538873118b7",
        "273828c46252fcbdd8ad2dd907130222b03466d52a2911d70c1a5950895d6bd1ae451d382d5a9b1b4c0ed0e5ae9a3dbd",
    ],
    "runtime": [
        [
            "44c0197b39157fdd7a4dcc44767f9d6b0bb3977c7a8e347b8492f827fe9d9e5c48aca29b220b80b6a540cf994b9bc9c0",
            "0084452c01668329d4bc06acdf58a7205c26743304509973949e5619bf81a6a7aea8c323c173019b3093d54e579e9378",
            "d833feef2cd945148aa38ead2c53e9b7f138190aaaebfc551dccd829fc207aa3ba80b70870d7330733642e01d48c3132",
            "00" * 48,
        ],
        ["00" * 48] * 4,
    ],
    "max_zero_padding": 70,
    "sgx_types": [1],
    "allow_dynamic_platform": True,
    "allow_cached_keys": True,
    "allow_smt": True,
}
HELLO = (b"Hello, world!" + bytes(51)).hex()
JUNE = "2025-06-25T00:00:00Z"
Verify = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, object]]]:
    def call(*arguments: object) -> tuple[int, dict[str, object]]:
        app = cyclopts.App(name="rapha", version_flags=[])
        register(app)
        status = run(app, [*map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def verify(console: Verify, tmp_path: Path) -> Verify:
    def call(name: str, policy: object, at: str = JUNE, **more: object) -> tuple[int, dict[str, object]]:
        (tmp_path / "policy.json").write_text(json.dumps(policy))
        options = {"quote": SAMPLES / name, "collateral": SAMPLES / f"{name}_collateral.json", "at": at, **more}
        words = [word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", value)]
        return console("attest", "verify", "--policy", tmp_path / "policy.json", *words)

    return call


def test_real_sgx_quote_under_a_policy_that_names_its_state(verify: Verify) -> None:
    status, verdict = verify("sgx_quote", SGX, report_data=HELLO)
    assert (status, verdict["verdict"], verdict["mode"], verdict["not_checked"]) == (0, "cleared", "production", ["tpm"])


def test_real_sgx_quote_with_intels_root_as_a_file(verify: Verify, tmp_path: Path) -> None:
    chain = json.loads((SAMPLES / "sgx_quote_collateral.json").read_bytes())["tcb_info_issuer_chain"]
    root = x509.load_pem_x509_certificates(chain.encode())[-1]
    (tmp_path / "root.der").write_bytes(root.public_bytes(Encoding.DER))
    assert verify("sgx_quote", SGX, root=tmp_path / "root.der")[0] == 0
    (tmp_path / "root.der").write_bytes(Machine.create(MOMENT).root_der)
    assert verify("sgx_quote", SGX, root=tmp_path / "root.der")[1]["codes"] == [
        "quote-chain",
        "root-development",
        "root-not-pinned",
    ]


def test_real_tdx_quote_under_a_policy_that_names_its_state(verify: Verify) -> None:
    assert verify("tdx_quote", TDX)[0] == 0


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("sgx_quote", {"tcb_exceptions": []}, "quote-status"),
        ("sgx_quote", {"tcb_exceptions": [{**SGX["tcb_exceptions"][0], "advisories": ["INTEL-SA-00289"]}]}, "tcb-status"),  # type: ignore[dict-item]
        ("sgx_quote", {"measurements": ["00" * 32]}, "enclave-measurement"),
        ("sgx_quote", {"min_tcb_eval_data_number": 18}, "collateral-stale"),
        ("sgx_quote", {"sgx_types": [1]}, "quote-flags"),
        ("sgx_quote", {"tee_types": ["tdx"]}, "quote-tee-type"),
        ("sgx_quote", {"root": "sha256:" + "00" * 32}, "root-not-pinned"),
        ("tdx_quote", {"allow_smt": False}, "quote-flags"),
        ("tdx_quote", {"allow_dynamic_platform": False}, "quote-flags"),
        ("tdx_quote", {"allow_cached_keys": False}, "quote-flags"),
        ("tdx_quote", {"max_zero_padding": 69}, "quote-trailing-bytes"),
        ("tdx_quote", {"runtime": []}, "enclave-measurement"),
        ("tdx_quote", {"tdx_attributes": {"mask": "ff" * 8, "value": "00" * 8}}, "enclave-attributes"),
    ],
)
def test_real_quotes_when_the_policy_differs_in_one_thing(
    verify: Verify, name: str, change: dict[str, object], code: str
) -> None:
    status, verdict = verify(name, {**(SGX if name == "sgx_quote" else TDX), **change})
    assert (status, verdict["codes"]) == (3, [code])


def test_outdated_tdx_quote(verify: Verify) -> None:
    status, verdict = verify("tdx_quote_outdated", TDX, at="2026-03-01T00:00:00Z")
    assert (status, verdict["codes"]) == (3, ["quote-tcb-level"])


@pytest.mark.parametrize("at", ["2025-06-19T10:00:00Z", "2025-07-20T00:00:00Z", "2026-11-21T00:00:00+00:00"])
def test_real_quote_at_another_time(verify: Verify, at: str) -> None:
    status, verdict = verify("sgx_quote", SGX, at=at)
    assert (status, verdict["codes"]) == (3, ["collateral-stale"])


@pytest.mark.parametrize("given", ["", "00", HELLO[:-2], HELLO + "00", "00" * 64, "zz" * 64, HELLO[:-1] + "1"])
def test_report_data_that_is_not_the_quotes(verify: Verify, given: str) -> None:
    status, verdict = verify("sgx_quote", SGX, report_data=given)
    assert (status, verdict["codes"]) == (3, ["report-data-mismatch"])


@pytest.mark.parametrize("policy", [{"unknown": 1}, {"measurements": ["33d8"]}, [], {"tee_types": "sgx"}, {"ttl": True}])
def test_policy_that_is_wrong_is_a_usage_error(verify: Verify, policy: object) -> None:
    assert verify("sgx_quote", policy)[0] == 2


def test_time_without_offset_is_a_usage_error(verify: Verify) -> None:
    assert verify("sgx_quote", SGX, at="2025-06-25T00:00:00")[0] == 2


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stage that cleared leaves behind."""
    b = bench(tmp_path / "bench", monkeypatch)
    b.attest()
    return b.attempt.folder / "evidence-files"


def repeat(console: Verify, folder: Path, **more: object) -> tuple[int, dict[str, object]]:
    options = {
        "quote": folder / "quote.bin",
        "collateral": folder / "collateral.json",
        "policy": folder / "policy.json",
        "root": folder / "root.der",
        "at": (folder / "at.txt").read_text().strip(),
        "report-data": (folder / "report_data.hex").read_text().strip(),
        "tpm": folder / "tpm",
        **more,
    }
    return console("attest", "verify", *[word for name, value in options.items() for word in (f"--{name}", value)])


def test_kept_evidence_repeats_the_decision(console: Verify, evidence: Path) -> None:
    status, verdict = repeat(console, evidence)
    assert (status, verdict["codes"], verdict["not_checked"], verdict["mode"]) == (0, [], [], "development")


def _flip(path: Path, at: int = -20) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("file", "codes"),
    [
        ("quote.bin", {"quote-chain", "tpm-nonce"}),
        ("tpm/attest", {"tpm-signature", "tpm-pcr-digest"}),
        ("tpm/signature", {"tpm-signature"}),
        ("root.der", {"quote-chain", "root-not-pinned"}),
    ],
)
def test_kept_evidence_with_one_bit_changed(console: Verify, evidence: Path, file: str, codes: set[str]) -> None:
    _flip(evidence / file)
    status, verdict = repeat(console, evidence)
    assert (status, set(verdict["codes"])) == (3, codes)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["attest", "signature", "pcrs.json"])
def test_kept_evidence_with_a_part_of_the_tpm_missing(console: Verify, evidence: Path, name: str) -> None:
    (evidence / "tpm" / name).unlink()
    status, verdict = repeat(console, evidence)
    assert (status, verdict["codes"]) == (3, ["tpm-missing"])


def test_kept_evidence_without_the_enrolment_record(console: Verify, evidence: Path) -> None:
    (evidence / "tpm" / "platform.json").unlink()
    status, verdict = repeat(console, evidence)
    assert status == 3
    assert {"platform-not-enrolled", "tpm-missing"} <= set(verdict["codes"])  # type: ignore[call-overload]


def test_kept_evidence_with_another_key_or_machine(console: Verify, evidence: Path, tmp_path: Path) -> None:
    record = evidence / "tpm" / "platform.json"
    kept = record.read_text()
    record.write_text(kept.replace('"machine":"bench"', '"machine":"other"'))
    assert repeat(console, evidence)[1]["codes"] == ["platform-not-enrolled"]
    record.write_text(kept)
    (evidence / "tpm" / "ak.pem").write_text("no key")
    assert repeat(console, evidence)[1]["codes"] == ["tpm-signer"]


def test_kept_evidence_with_a_pcr_changed(console: Verify, evidence: Path) -> None:
    path = evidence / "tpm" / "pcrs.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "4": "00" * 32}))
    assert repeat(console, evidence)[1]["codes"] == ["tpm-pcr-digest", "tpm-pcr-values"]
    path.write_text(json.dumps({index: value for index, value in values.items() if index != "4"}))
    assert set(repeat(console, evidence)[1]["codes"]) == {"tpm-pcr-digest", "tpm-pcr-selection"}  # type: ignore[call-overload]


def test_collateral_import_checks_and_never_goes_back(console: Verify, tmp_path: Path) -> None:
    machine = Machine.create(MOMENT)
    root, into, bundle = tmp_path / "root.der", tmp_path / "in use.json", tmp_path / "bundle.json"
    root.write_bytes(machine.root_der)
    common = ("--into", into, "--root", root, "--at", MOMENT.isoformat())

    def given(collateral: bytes) -> tuple[int, dict[str, object]]:
        bundle.write_bytes(collateral)
        return console("attest", "collateral", "import", bundle, *common)

    status, said = given(machine.collateral(MOMENT, Tcb(number=18)))
    assert (status, said["number"], said["fmspc"]) == (0, 18, "00606A000000")
    assert given(machine.collateral(MOMENT, Tcb(number=17)))[1]["codes"] == ["collateral-rolled-back"]
    assert given(Machine.create(MOMENT).collateral(MOMENT))[1]["codes"] == ["collateral-root"]
    assert given(machine.collateral(MOMENT, Tcb(days=0)))[1]["codes"] == ["collateral-stale"]
    broken = json.loads(machine.collateral(MOMENT, Tcb(number=19)))
    broken["tcb_info"] = broken["tcb_info"].replace('"UpToDate"', '"OutOfDate"')
    assert given(json.dumps(broken).encode())[1]["codes"] == ["collateral-signature"]
    assert given(b"{}")[1]["codes"] == ["collateral-malformed"]
    twice = machine.collateral(MOMENT, Tcb(number=19)).replace(b"{", b'{"pck_crl": "00", ', 1)
    assert given(twice)[1]["codes"] == ["collateral-malformed"]
    assert json.loads(into.read_bytes())["tcb_info"].count('"tcbEvaluationDataNumber":18') == 1


@pytest.mark.parametrize("name", ["sgx_quote", "tdx_quote", "tdx_quote_outdated"])
def test_collateral_import_of_real_bundles(console: Verify, tmp_path: Path, name: str) -> None:
    at = "2026-03-01T00:00:00Z" if name == "tdx_quote_outdated" else JUNE
    source = tmp_path / "bundle.json"
    shutil.copy(SAMPLES / f"{name}_collateral.json", source)
    assert console("attest", "collateral", "import", source, "--into", tmp_path / "c.json", "--at", at)[0] == 0


def test_enrolment_without_an_attester_is_a_peers_failure(console: Verify, tmp_path: Path) -> None:
    status, said = console(
        "node", "enrol", "--socket", tmp_path / "none", "--machine", "node-1", "--out", tmp_path / "platform.json"
    )
    assert (status, said["codes"]) == (4, ["attester-unreachable"])
