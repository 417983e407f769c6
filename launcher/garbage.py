"""Python's garbage collector in a worker, held back until the first step.

Importing and tracing make hundreds of thousands of objects that stay. By its defaults the
collector looks through the young ones each 700 (Python 3.11) or 2000 (3.13) of them, and from time
to time through all, for next to no garbage: a tenth of the processor time to the first step of a
12-layer flax program. Here it looks each 100,000. What was imported is left alone for good
(`gc.freeze`), which also makes later full collections short and keeps these pages shared with
processes that are forked.
"""

from __future__ import annotations

import gc
import threading

_EACH = (100_000, 20, 20)
_AT_MOST_S = 300.0


class HeldBack:
    """Holds the collector back from now on. Safe among threads.

    A program that sets thresholds of its own, or turns the collector off, has its way.
    """

    def __init__(self) -> None:
        self._stock = gc.get_threshold()
        gc.set_threshold(*_EACH)

    def freeze(self) -> None:
        """Leave alone what is there by now; and the interpreter's thresholds return in 5 minutes.

        A program that tells no steps may make garbage by the gigabyte.
        """
        gc.freeze()
        timer = threading.Timer(_AT_MOST_S, self.let_go)
        timer.name = "hotstart-garbage"
        timer.daemon = True
        timer.start()

    def let_go(self) -> None:
        """The interpreter's own thresholds again: the first step is done."""
        if gc.get_threshold() == _EACH:
            gc.set_threshold(*self._stock)
