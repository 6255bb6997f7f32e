"""A made-up SGX platform for development: its own root, PCK chain, quoting enclave, collateral, and quotes that really verify
under it.

Nothing here is ever trusted in production: the gate demands Intel's root there. Formats: Intel SGX PCK Certificate and CRL
Profile specification, the PCS API's TCB info version 3 and QE identity version 2, quote version 3.
"""

import datetime as dt
import hashlib
import json
import os
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID, ObjectIdentifier

from infra.attester.der import sgx_extension

Key = ec.EllipticCurvePrivateKey
SGX_OID = "1.2.840.113741.1.13.1"
INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
ROOT, PROCESSOR_CA, PCK, TCB_SIGNING = (
    "Intel SGX Root CA",
    "Intel SGX PCK Processor CA",
    "Intel SGX PCK Certificate",
    "Intel SGX TCB Signing",
)
DAY = dt.timedelta(days=1)


def _key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, kw_only=True)
class Enclave:
    """What a quote reports. flags: 1 INIT, 2 DEBUG, 4 MODE64BIT, 0x10 PROVISION_KEY."""

    measurement: bytes = hashlib.sha256(b"rapha development enclave").digest()
    signer: bytes = hashlib.sha256(b"rapha development signer").digest()
    isv_prod_id: int = 1
    isv_svn: int = 2
    flags: int = 0x05
    misc_select: int = 0
    config_id: bytes = bytes(64)


@dataclass(frozen=True, kw_only=True)
class Tcb:
    """What the collateral says: statuses, the evaluation data number, validity, who is revoked."""

    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    qe_status: str = "UpToDate"
    number: int = 17
    issued: dt.timedelta = -DAY
    days: int = 30
    platform_svn: int = 10
    revoke_pck: bool = False
    revoke_intermediate: bool = False
    qe_signer: bytes = hashlib.sha256(b"rapha development quoting enclave").digest()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The keys and certificates of one made-up machine. ppid: 16 bytes; fmspc: 6 bytes; svn: of each of the first 8
    components."""

    root: tuple[Key, x509.Certificate]
    intermediate: tuple[Key, x509.Certificate]
    pck: tuple[Key, x509.Certificate]
    signing: tuple[Key, x509.Certificate]
    attestation: Key = field(default_factory=_key)
    ppid: bytes
    fmspc: bytes
    svn: int = 10
    qe_signer: bytes = Tcb.qe_signer
    qe_svn: int = 8

    @classmethod
    def create(
        cls, now: dt.datetime, *, fmspc: bytes = bytes.fromhex("00606a000000"), svn: int = 10, under: "Machine | None" = None
    ) -> "Machine":
        """A new machine under a new root, or under the authorities of another machine."""
        start, end, ppid = now - 400 * DAY, now + 4000 * DAY, os.urandom(16)
        if under is None:
            root_key, ca_key, signing_key = _key(), _key(), _key()
            root = root_key, _certificate(ROOT, root_key, ROOT, root_key, start, end, path_length=1)
            intermediate = ca_key, _certificate(PROCESSOR_CA, ca_key, ROOT, root_key, start, end, path_length=0)
            signing = signing_key, _certificate(TCB_SIGNING, signing_key, ROOT, root_key, start, end)
        else:
            root, intermediate, signing = under.root, under.intermediate, under.signing
        extension = sgx_extension(ppid, [svn] * 8 + [0] * 8, 13, _cpu_svn(svn), bytes(2), fmspc)
        pck_key = _key()
        pck = pck_key, _certificate(PCK, pck_key, PROCESSOR_CA, intermediate[0], start, end, extension=extension)
        return cls(root=root, intermediate=intermediate, pck=pck, signing=signing, ppid=ppid, fmspc=fmspc, svn=svn)

    @property
    def root_der(self) -> bytes:
        """The trust anchor that a development node pins."""
        return self.root[1].public_bytes(Encoding.DER)

    def quote(self, report_data: bytes, enclave: Enclave | None = None) -> bytes:
        """A version 3 quote over 64 bytes, signed through this machine's chain."""
        enclave = enclave or Enclave()
        header = struct.pack("<HHIHH", 3, 2, 0, 10, 15) + INTEL_QE_VENDOR + bytes(20)
        report = _report(_cpu_svn(self.svn), enclave, report_data)
        key, more = _point(self.attestation), bytes(range(32))
        qe = Enclave(
            measurement=hashlib.sha256(b"qe").digest(), signer=self.qe_signer, isv_prod_id=1, isv_svn=self.qe_svn, flags=0x15
        )
        qe_report = _report(_cpu_svn(self.svn), qe, hashlib.sha256(key + more).digest() + bytes(32))
        chain = _pem(self.pck[1], self.intermediate[1], self.root[1])
        signed = _raw_signature(self.attestation, header + report) + key + qe_report + _raw_signature(self.pck[0], qe_report)
        signed += struct.pack("<H", len(more)) + more + struct.pack("<HI", 5, len(chain)) + chain
        return header + report + struct.pack("<I", len(signed)) + signed

    def collateral(self, now: dt.datetime, tcb: Tcb | None = None) -> bytes:
        """The PCS documents for this machine, as the JSON that verifiers read."""
        tcb = tcb or Tcb()
        start = now + tcb.issued
        end = start + tcb.days * DAY
        info = _tcb_info(self, tcb, start, end)
        identity = _qe_identity(tcb, start, end)
        signers = _pem(self.signing[1], self.root[1]).decode()
        revoked_ca = [self.intermediate[1].serial_number] if tcb.revoke_intermediate else []
        revoked_pck = [self.pck[1].serial_number] if tcb.revoke_pck else []
        document = {
            "pck_crl_issuer_chain": _pem(self.intermediate[1], self.root[1]).decode(),
            "root_ca_crl": _crl(ROOT, self.root[0], start, end, revoked_ca).hex(),
            "pck_crl": _crl(PROCESSOR_CA, self.intermediate[0], start, end, revoked_pck).hex(),
            "tcb_info_issuer_chain": signers,
            "tcb_info": info,
            "tcb_info_signature": _raw_signature(self.signing[0], info.encode()).hex(),
            "qe_identity_issuer_chain": signers,
            "qe_identity": identity,
            "qe_identity_signature": _raw_signature(self.signing[0], identity.encode()).hex(),
        }
        return json.dumps(document).encode()

    def save(self, folder: Path) -> None:
        """Keeps the machine in `folder`, readable by its owner alone."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        parts = {"root": self.root, "intermediate": self.intermediate, "pck": self.pck, "signing": self.signing}
        document = {name: [_key_pem(key), _pem(certificate).decode()] for name, (key, certificate) in parts.items()}
        plain = {"attestation": _key_pem(self.attestation), "ppid": self.ppid.hex(), "fmspc": self.fmspc.hex(), "svn": self.svn}
        path = folder / "machine.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({**document, **plain}))

    @classmethod
    def load(cls, folder: Path) -> "Machine":
        """The machine that `save` kept."""
        document = json.loads((folder / "machine.json").read_text())
        parts = {
            name: (_load_key(document[name][0]), x509.load_pem_x509_certificate(document[name][1].encode()))
            for name in ("root", "intermediate", "pck", "signing")
        }
        return cls(
            root=parts["root"],
            intermediate=parts["intermediate"],
            pck=parts["pck"],
            signing=parts["signing"],
            attestation=_load_key(document["attestation"]),
            ppid=bytes.fromhex(document["ppid"]),
            fmspc=bytes.fromhex(document["fmspc"]),
            svn=document["svn"],
        )

    def with_quoting_enclave(self, *, signer: bytes | None = None, svn: int | None = None) -> "Machine":
        """The same machine with another quoting enclave: for attacks."""
        return replace(self, qe_signer=signer or self.qe_signer, qe_svn=self.qe_svn if svn is None else svn)


def _cpu_svn(svn: int) -> bytes:
    return bytes([svn] * 8 + [0] * 8)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Rapha development, not Intel"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )


def _certificate(
    common: str,
    key: Key,
    issuer: str,
    issuer_key: Key,
    start: dt.datetime,
    end: dt.datetime,
    *,
    path_length: int | None = None,
    extension: bytes = b"",
) -> x509.Certificate:
    authority = path_length is not None
    point = x509.DistributionPoint([x509.UniformResourceIdentifier("https://example.invalid/crl")], None, None, None)
    usage = x509.KeyUsage(not authority, not authority, False, False, False, authority, authority, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.CRLDistributionPoints([point]), critical=False)
        .add_extension(usage, critical=True)
    )
    if extension:
        builder = builder.add_extension(x509.UnrecognizedExtension(ObjectIdentifier(SGX_OID), extension), critical=False)
    return builder.sign(issuer_key, SHA256())


def _crl(issuer: str, key: Key, start: dt.datetime, end: dt.datetime, revoked: list[int]) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(issuer))
        .last_update(start)
        .next_update(end)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def _report(cpu_svn: bytes, enclave: Enclave, report_data: bytes) -> bytes:
    """SGX REPORT body, 384 bytes (SDM vol. 3D, table 35-21)."""
    body = cpu_svn + struct.pack("<I", enclave.misc_select) + bytes(28)
    body += struct.pack("<QQ", enclave.flags, 0xE7) + enclave.measurement + bytes(32) + enclave.signer + bytes(32)
    body += enclave.config_id + struct.pack("<HH", enclave.isv_prod_id, enclave.isv_svn) + bytes(60) + report_data
    if len(body) != 384:
        raise ValueError("report data must be 64 bytes")
    return body


def _tcb_info(machine: Machine, tcb: Tcb, start: dt.datetime, end: dt.datetime) -> str:
    def level(svn: int, pce: int, date: str, status: str, advisories: tuple[str, ...]) -> dict[str, object]:
        components = [{"svn": svn if i < 8 else 0} for i in range(16)]
        found: dict[str, object] = {"tcb": {"sgxtcbcomponents": components, "pcesvn": pce}, "tcbDate": date, "tcbStatus": status}
        return {**found, "advisoryIDs": list(advisories)} if advisories else found

    document = {
        "id": "SGX",
        "version": 3,
        "issueDate": _utc(start),
        "nextUpdate": _utc(end),
        "fmspc": machine.fmspc.hex(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": tcb.number,
        "tcbLevels": [
            level(tcb.platform_svn, 13, "2024-03-13T00:00:00Z", tcb.status, tcb.advisories),
            level(1, 5, "2018-01-01T00:00:00Z", "OutOfDate", ("SYN-SA-00001",)),
        ],
    }
    return json.dumps(document, separators=(",", ":"))


def _qe_identity(tcb: Tcb, start: dt.datetime, end: dt.datetime) -> str:
    document = {
        "id": "QE",
        "version": 2,
        "issueDate": _utc(start),
        "nextUpdate": _utc(end),
        "tcbEvaluationDataNumber": tcb.number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": tcb.qe_signer.hex().upper(),
        "isvprodid": 1,
        "tcbLevels": [
            {"tcb": {"isvsvn": 8}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": tcb.qe_status},
            {"tcb": {"isvsvn": 1}, "tcbDate": "2018-01-01T00:00:00Z", "tcbStatus": "OutOfDate"},
        ],
    }
    return json.dumps(document, separators=(",", ":"))


def _utc(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _raw_signature(key: Key, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _point(key: Key) -> bytes:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _key_pem(key: Key) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _load_key(pem: str) -> Key:
    key = load_pem_private_key(pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")
    return key
