"""Where an attester gets DCAP quotes: the TEE it runs in, or the made-up machine of `synthetic` in development."""

import datetime as dt
import secrets
from pathlib import Path
from typing import Protocol

from infra.attester.synthetic import Enclave, Machine
from rapha.errors import PeerError, Refusal

TSM_REPORTS = Path("/sys/kernel/config/tsm/report")
GRAMINE = Path("/dev/attestation")


class Tee(Protocol):
    """Something that makes a DCAP quote over 64 bytes."""

    def quote(self, report_data: bytes) -> bytes: ...


class SyntheticTee:
    """The development machine kept in `folder`; `collateral.json` and `root.der` are laid beside it, fresh at each start."""

    def __init__(self, folder: Path) -> None:
        now = dt.datetime.now(dt.UTC)
        if (folder / "machine.json").exists():
            self.machine = Machine.load(folder)
        else:
            self.machine = Machine.create(now)
            self.machine.save(folder)
        (folder / "collateral.json").write_bytes(self.machine.collateral(now))
        (folder / "root.der").write_bytes(self.machine.root_der)

    def quote(self, report_data: bytes) -> bytes:
        """A quote of the development enclave."""
        return self.machine.quote(report_data, Enclave())


class DeviceTee:
    """A TDX guest's quote through configfs-tsm (Linux 6.7), or an SGX enclave's through Gramine's pseudo-files.

    Written from the kernel's Documentation/ABI/testing/configfs-tsm and Gramine's attestation page; never run on such hardware
    here.
    """

    def __init__(self, tsm: Path = TSM_REPORTS, gramine: Path = GRAMINE) -> None:
        self._tsm, self._gramine = tsm, gramine
        if not tsm.is_dir() and not (gramine / "quote").exists():
            raise Refusal(
                ["tee-device-absent"], "there is neither configfs-tsm nor Gramine's /dev/attestation", gate="attestation"
            )

    def quote(self, report_data: bytes) -> bytes:
        """A fresh quote from the device."""
        try:
            return self._from_tsm(report_data) if self._tsm.is_dir() else self._from_gramine(report_data)
        except OSError as error:
            raise PeerError("tee-failed", f"the TEE's interface failed: {error.strerror}", peer="tee") from None

    def _from_tsm(self, report_data: bytes) -> bytes:
        report = self._tsm / f"rapha-{secrets.token_hex(8)}"
        report.mkdir()
        try:
            (report / "inblob").write_bytes(report_data)
            generation = (report / "generation").read_text()
            quote = (report / "outblob").read_bytes()
            if (report / "generation").read_text() != generation:
                raise PeerError("tee-raced", "another process wrote to this report", peer="tee")
            return quote
        finally:
            report.rmdir()

    def _from_gramine(self, report_data: bytes) -> bytes:
        (self._gramine / "user_report_data").write_bytes(report_data)
        return (self._gramine / "quote").read_bytes()
