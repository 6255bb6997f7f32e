"""The reading service as its flows see it: profile, register, ledger, archives, the processes beside it, each made once."""

import base64
import dataclasses
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from blocks.audit import AuditTrail, open_audit_trail
from blocks.kept import KeptFiles
from blocks.ledger import Ledger
from blocks.models import ModelPackage, load_models
from blocks.profile import Profile, load_profile
from blocks.reading import ReadingRegister, StudyLease, open_reading_register
from blocks.reading_settings import lease_seconds, reading_values
from blocks.receiver import Receiver
from blocks.sealed_columns import SealedColumns, column_key
from blocks.study import StudyReader
from blocks.witnessed import WitnessedArchive
from flows.pacs.endpoints import chosen, witnessed
from flows.polled import poll_settings
from policies.notice import OPERATORS
from policies.polling import PollSettings
from rapha.canonical import digest, digest_of
from rapha.errors import ConfigurationError
from rapha.signing import load_private
from tasks.attempt import Attempt
from tasks.reading.analyse import AnalyseLimits
from tasks.shared.probe import read_record

QUIET_SECONDS = 30


@dataclass(frozen=True)
class Clinic:
    """Opening it talks to no peer."""

    environment: Mapping[str, str]
    profile: Profile

    @classmethod
    def open(cls, environment: Mapping[str, str] = os.environ) -> "Clinic":
        """Raises `ConfigurationError`, one code for each thing that is missing or wrong."""
        kept = reading_values(environment)
        return cls(kept, load_profile(Path(kept["RAPHA_PROFILE_PATH"]), environment))

    @property
    def state(self) -> Path:
        return Path(self.environment["RAPHA_STATE_DIR"])

    @property
    def node_id(self) -> str:
        return self.environment["RAPHA_NODE_ID"]

    @property
    def worker(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    @property
    def person(self) -> str:
        """Who the audit trail says it was, where no human asked."""
        return f"reading@{socket.gethostname()}"

    @property
    def most(self) -> int:
        """Studies in flight at once."""
        return int(self.profile.values.get("workflow.max_concurrent_studies", 50))

    @property
    def quiet(self) -> int:
        """Seconds that a study which is new or changed waits for more of it to come."""
        return int(self.profile.values.get("workflow.quiet_seconds", QUIET_SECONDS))

    @property
    def letters_to(self) -> str:
        """The group of recipients that is told of dead letters, "" where the profile names none."""
        return OPERATORS if f"notifications.recipients.{OPERATORS}" in self.profile.values else ""

    @cached_property
    def lease_seconds(self) -> int:
        """As `blocks.reading_settings.lease_seconds`."""
        return lease_seconds(self.environment)

    @cached_property
    def kept(self) -> KeptFiles:
        """Sealed files of studies that are not through yet."""
        columns = SealedColumns(column_key(self.environment["RAPHA_REGISTER_KEY_BASE64"]))
        return KeptFiles(self.state / "kept", columns)

    @cached_property
    def register(self) -> ReadingRegister:
        return open_reading_register(self.environment)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.state / "ledger", load_private(Path(self.environment["RAPHA_KEYS_DIR"]) / "ledger.key"))

    @cached_property
    def trail(self) -> AuditTrail:
        return open_audit_trail(self.environment)

    @cached_property
    def models(self) -> tuple[ModelPackage, ...]:
        return load_models(Path(self.environment["RAPHA_MODELS_PATH"]))

    @cached_property
    def limits(self) -> AnalyseLimits:
        """Raises `ConfigurationError(trainer-command-missing)`."""
        script = Path(self.environment["RAPHA_TRAINER_COMMAND"])
        try:
            return AnalyseLimits(script=script, script_digest=digest(script.read_bytes()))
        except OSError:
            raise ConfigurationError(["trainer-command-missing"], "RAPHA_TRAINER_COMMAND cannot be read") from None

    @property
    def launcher(self) -> Path:
        return Path(self.environment["RAPHA_MODEL_LAUNCHER_SOCKET"])

    def archive(self, name: str) -> WitnessedArchive:
        """Raises `ConfigurationError(pacs-unknown)`, `Refusal(capabilities-odd)`."""
        return witnessed(chosen(self.profile, name), self.state, self.trail, self.person)

    def polling(self, name: str) -> PollSettings:
        """Raises `Refusal(capabilities-odd)`."""
        settings = poll_settings(self.profile, name, read_record(self.state / "capabilities", name))
        return dataclasses.replace(settings, quiet=self.quiet)

    def study(self) -> StudyReader:
        """A new connection to the study reader: what it holds for us ends with it."""
        return StudyReader(Path(self.environment["RAPHA_STUDY_SOCKET"]))

    def receiver(self) -> Receiver | None:
        """A new connection to the receiver, where one is configured."""
        path, store = (self.environment.get(f"RAPHA_RECEIVER_{name}") for name in ("SOCKET", "STORE"))
        return Receiver(Path(path), Path(store)) if path and store else None

    def attempt(self, lease: StudyLease) -> Attempt:
        """The attempt at one study, under a name that says nothing: digest of node, row and how often it was re-opened."""
        folder = self.state / "reading" / str(lease.row) / f"{lease.order}-{lease.attempt}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        job = digest_of({"rapha reading": self.node_id, "row": lease.row, "order": lease.order})
        nonce = secrets.token_hex(32)
        return Attempt(job=job, number=lease.attempt, nonce=nonce, mode=self.profile.mode, folder=folder, ledger=self.ledger)


def register_key() -> str:
    """A new key for RAPHA_REGISTER_KEY_BASE64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()
