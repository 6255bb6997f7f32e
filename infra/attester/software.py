"""A TPM made of software, for development where there is no swtpm: a P-256 key that signs hand-built quotes. Never enrolled as
bound."""

import datetime as dt
import hashlib
import json
import struct
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from infra.attester.tpm import TpmIdentity, TpmQuote
from policies.tpm import ALG_ECDSA, ALG_SHA256, GENERATED, ST_ATTEST_QUOTE, pcr_digest
from rapha.errors import Refusal


def attest_bytes(
    *,
    signer: bytes,
    extra: bytes,
    pcrs: dict[int, bytes],
    clock: int,
    resets: int = 1,
    restarts: int = 0,
    safe: bool = True,
    magic: bytes = GENERATED,
    kind: int = ST_ATTEST_QUOTE,
) -> bytes:
    """A TPMS_ATTEST over these PCRs of the SHA-256 bank."""
    bitmap = bytearray(3)
    for index in pcrs:
        bitmap[index // 8] |= 1 << index % 8
    digest = pcr_digest(pcrs)
    head = magic + struct.pack(">H", kind) + _sized(signer) + _sized(extra)
    clock_info = struct.pack(">QIIB", clock, resets, restarts, safe)
    quoted = struct.pack(">IHB", 1, ALG_SHA256, 3) + bytes(bitmap) + _sized(digest)
    return head + clock_info + bytes(8) + quoted


def sign_attest(key: ec.EllipticCurvePrivateKey, attest: bytes) -> bytes:
    """A TPMT_SIGNATURE, ECDSA with SHA-256."""
    r, s = decode_dss_signature(key.sign(attest, ec.ECDSA(SHA256())))
    parts = _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))
    return struct.pack(">HH", ALG_ECDSA, ALG_SHA256) + parts


class SoftwareTpm:
    """Keys and counters in a folder. Each start counts as a reset, as with a chip."""

    kind = "software"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state = folder / "software-tpm.json"
        if self._state.exists():
            state = json.loads(self._state.read_text())
            key = load_pem_private_key(state["key"].encode(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("not an EC key")
            self.key, self.resets = key, state["resets"] + 1
        else:
            self.key, self.resets = ec.generate_private_key(ec.SECP256R1()), 1
        self._state.touch(mode=0o600)
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self._state.write_text(json.dumps({"key": pem, "resets": self.resets}))
        self.pcrs = {index: hashlib.sha256(b"rapha development boot %d" % index).digest() for index in range(24)}

    @property
    def ak_pem(self) -> str:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def name(self) -> bytes:
        der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return b"\x00\x0b" + hashlib.sha256(der).digest()

    @property
    def qualified_name(self) -> bytes:
        return b"\x00\x0b" + hashlib.sha256(b"rapha software tpm" + self.name).digest()

    def quote(self, nonce: bytes, pcrs: list[int]) -> TpmQuote:
        """A quote over `pcrs` with this nonce."""
        values = {index: self.pcrs[index] for index in sorted(pcrs)}
        clock = time.time_ns() // 1_000_000
        attest = attest_bytes(signer=self.qualified_name, extra=nonce, pcrs=values, clock=clock, resets=self.resets)
        return TpmQuote(attest=attest, signature=sign_attest(self.key, attest), pcrs=values)

    def identity(self) -> TpmIdentity:
        """The key, and a self-signed stand-in for an EK certificate."""
        return TpmIdentity(
            ak_pem=self.ak_pem,
            ak_name=self.name,
            ak_qualified_name=self.qualified_name,
            ak_public=b"",
            ek_public=b"",
            ek_certificate=self._certificate(),
            pcrs=dict(self.pcrs),
        )

    def activate(self, credential: bytes) -> bytes:
        """There is no endorsement key here."""
        raise Refusal(["tpm-no-endorsement-key"], "a software TPM has no endorsement key to activate a credential with")

    def close(self) -> None:
        """Nothing to stop."""

    def _certificate(self) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Rapha development, no TPM")])
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key())
        builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=3650))
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.DER)


def _sized(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value
