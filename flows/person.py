"""Who is at the keyboard, for the audit trail."""

import os
import pwd
import socket


def person() -> str:
    """Who runs this process, by the system's word; with `sudo`, who called it."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    caller = os.environ.get("SUDO_USER", "")
    return f"{f'{caller} as ' if caller else ''}{user}@{socket.gethostname()}"
