"""The hospital's own launcher, which `RAPHA_TRAINER_COMMAND` names: starts the signed entry point inside the sandbox.

    python launcher.py ENTRY_POINT

It fixes what the AI team has no say in: where modules come from, the number of threads, the start of every random sequence. It
imports nothing of the project, and its own digest is part of the evidence.
"""

import os
import random
import runpy
import sys
from pathlib import Path

WORKLOAD = "/workload"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def entry_path(name: str) -> Path:
    """The entry point's file, which must lie in the workload. Exits with status 2 when it does not."""
    root = Path(WORKLOAD).resolve()
    path = (root / name).resolve()
    if path.suffix != ".py" or not path.is_relative_to(root) or not path.is_file():
        sys.exit(2)
    return path


def fix_threads_and_chance() -> None:
    """As many threads as there are processors for this process; RAPHA_SEED for every generator that a trainer may use."""
    threads = max(1, len(os.sched_getaffinity(0)))
    for name in THREAD_VARIABLES:  # read by the libraries when they load
        os.environ[name] = str(threads)
    seed = int(os.environ.get("RAPHA_SEED", "0"))
    random.seed(seed)
    import numpy as np
    import torch

    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit(2)
    entry = entry_path(arguments[0])
    sys.dont_write_bytecode = True
    fix_threads_and_chance()
    # The workload's own folder comes last: a file of it cannot stand in for a library.
    here = ("", WORKLOAD, str(Path(__file__).resolve().parent))
    sys.path = [place for place in sys.path if place not in here] + [str(entry.parent), WORKLOAD]
    sys.argv = [str(entry)]
    runpy.run_path(str(entry), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
