"""The sandbox's first process: starts the program on the launcher's word, and ends with the program or with the launcher.

    leash.py DESCRIPTOR PROGRAM [ARGUMENT ...]

The descriptor is a pipe whose other end only the launcher holds. Being process 1, its end is the end of every process of the
namespace, and no signal from inside reaches it (pid_namespaces(7)). Standard library only: it is copied in.
"""

import os
import select
import signal
import sys

LAUNCHER_GONE, NO_START = 124, 125


def main() -> None:
    """Does not return."""
    line, program = int(sys.argv[1]), sys.argv[2:]
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    if os.read(line, 1) != b"1":
        os._exit(NO_START)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        os.close(line)
        os.execv(program[0], program)  # noqa: S606 - no shell is the point
    while True:
        ready, _, _ = select.select([line, woken], [], [])
        if line in ready:
            os._exit(LAUNCHER_GONE)
        os.read(woken, 4096)
        reap(child)


def reap(child: int) -> None:
    """Collects whatever has ended; the program's own end is the sandbox's."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
