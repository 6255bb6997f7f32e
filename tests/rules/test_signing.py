"""Signatures on documents: by whom, in which role, over what."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rapha.errors import ConfigurationError, Refusal
from rapha.signing import JOB_TYPE, MANIFEST_TYPE, load_private, load_trusted, roles_signed, sign, write_private, write_public

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED = {"custodian": [KEY.public_key()], "dpo": [KEY.public_key(), OTHER.public_key()]}
DOCUMENT: dict[str, Any] = {"a": 1}


def codes(document: dict[str, Any], payload_type: str = JOB_TYPE) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refusal:
        roles_signed(document, payload_type, TRUSTED)
    return refusal.value.codes


def test_two_roles_sign_one_document() -> None:
    document = sign(sign(DOCUMENT, JOB_TYPE, KEY, "custodian"), JOB_TYPE, OTHER, "dpo")
    assert set(roles_signed(document, JOB_TYPE, TRUSTED)) == {"custodian", "dpo"}


def test_a_signature_counts_in_the_role_in_which_it_was_made_only() -> None:
    document = sign(DOCUMENT, JOB_TYPE, KEY, "custodian")
    document["signatures"].append({**document["signatures"][0], "role": "dpo"})
    assert codes(document) == ("signature-invalid",)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d | {"a": 2}, "signature-invalid"),
        (lambda d: d | {"signatures": []}, "signature-missing"),
        (lambda d: d | {"signatures": "x"}, "signature-missing"),
        (lambda d: d | {"signatures": d["signatures"] * 17}, "signature-malformed"),
        (lambda d: d | {"signatures": [d["signatures"][0] | {"extra": "1"}]}, "signature-malformed"),
        (lambda d: d | {"signatures": [d["signatures"][0] | {"sig": 7}]}, "signature-malformed"),
        (lambda d: d | {"signatures": [d["signatures"][0] | {"sig": "not base64"}]}, "signature-invalid"),
        (lambda d: d | {"signatures": [d["signatures"][0] | {"sig": ""}]}, "signature-invalid"),
        (lambda d: d | {"signatures": [d["signatures"][0] | {"role": "admin"}]}, "signature-untrusted"),
        (lambda d: d | {"signatures": [d["signatures"][0] | {"keyid": "sha256:" + "0" * 64}]}, "signature-untrusted"),
    ],
)
def test_one_thing_changed_is_refused(change: Any, code: str) -> None:
    document = sign(DOCUMENT, JOB_TYPE, KEY, "custodian")
    assert roles_signed(document, JOB_TYPE, TRUSTED)
    assert codes(change(document)) == (code,)


def test_a_signature_for_one_type_of_document_does_not_count_for_another() -> None:
    assert codes(sign(DOCUMENT, MANIFEST_TYPE, KEY, "custodian")) == ("signature-invalid",)


def test_one_good_signature_does_not_cover_a_bad_one() -> None:
    document = sign(sign(DOCUMENT, JOB_TYPE, KEY, "custodian"), JOB_TYPE, Ed25519PrivateKey.generate(), "dpo")
    assert codes(document) == ("signature-untrusted",)


def test_a_private_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("")
    path.chmod(0o644)
    write_private(path, KEY)
    assert path.stat().st_mode & 0o077 == 0
    assert load_private(path).public_key() == KEY.public_key()
    path.chmod(0o640)
    with pytest.raises(ConfigurationError) as error:
        load_private(path)
    assert error.value.codes == ("key-readable-by-others",)


def test_a_missing_folder_trusts_nobody(tmp_path: Path) -> None:
    assert load_trusted(tmp_path / "none") == {}
    write_public(tmp_path / "dpo" / "one.pem", KEY.public_key())
    assert list(load_trusted(tmp_path)) == ["dpo"]
