"""What a process that holds clear data of patients gives up before it touches any."""

import ctypes
import logging
import os
import resource
import sys
import threading
import warnings
from types import TracebackType

from pydicom import config as pydicom_config

PR_SET_DUMPABLE = 4


def harden(name: str) -> None:
    """No core dumps, no tracing by others of this user, and nothing that a library may quote on stderr."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

    def quiet(kind: type[BaseException], _error: BaseException | None, _trace: TracebackType | None) -> None:
        print(f"{name}: {kind.__name__}", file=sys.stderr)

    sys.excepthook = quiet
    threading.excepthook = lambda details: quiet(details.exc_type, details.exc_value, details.exc_traceback)
