"""What the threads of a worker do: it writes their stacks when a signal asks for them.

`faulthandler` writes them from within the signal's handler, in C, so it needs neither the main
thread, which may be inside a collective, nor the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import signal

SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2)  # programs use the latter


def write_on_signal(path: str) -> None:
    """Have this process write its stacks to `path` at each `SIGNAL`, to stderr where it can't."""
    try:
        file = open(path, "wb")  # noqa: PTH123, SIM115 - open as long as this process lives
    except OSError:
        faulthandler.register(SIGNAL, all_threads=True)
    else:
        faulthandler.register(SIGNAL, file=file, all_threads=True)
