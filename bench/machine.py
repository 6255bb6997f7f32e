"""What a measurement was made on, and with."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "numpy", "cryptography", "prefect", "pydicom")
PROGRAMS = {
    "commit": ("git", "describe", "--always", "--dirty"),
    "bwrap": ("bwrap", "--version"),
    "orthanc": ("Orthanc", "--version"),
    "curl": ("curl", "--version"),
}


def machine() -> dict[str, object]:
    """Cores, CPU, memory, kernel and versions; the time in seconds since the epoch."""
    return {
        "at": int(time.time()),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **{name: _version(argv) for name, argv in PROGRAMS.items()},
    }


def load() -> float:
    """How many programs wanted a core in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(argv: tuple[str, ...]) -> str:
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    return " ".join((said.stdout or said.stderr).split()[:2])
