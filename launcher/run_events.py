"""The events of a run that this process owns, on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotstart.cache.errors import StoreError
from hotstart.launcher.console import Console, Printer
from hotstart.launcher.events import (
    Events,
    EventWriter,
    emit_run_ended,
    run_started_fields,
    take_stdout,
)
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.misses import report_soon

if TYPE_CHECKING:
    from hotstart.launcher.launch import Run

_LAST_S = 30.0


class RunOnStdout:
    """From the first event of a run to its last one; `close` is to be called in any case.

    A reader that is slow or has gone changes nothing for the run.
    """

    def __init__(self, run: Run, console: Console) -> None:
        """Takes standard output for events alone, and writes the first one."""
        self._run = run
        self._console = console
        self._printer = Printer(take_stdout(), left_out="")
        self._writer = EventWriter(run.name, self._printer.put)
        self.events = Events(self._writer, console)
        me = OwnerIdentity.of_this_process()
        self._writer.emit("run_started", **run_started_fields(run.record, run.epoch, me))

    def note(self, text: str) -> None:
        """A line of the launcher's own, as an event and for a person."""
        self._writer.emit("note", text=text)
        self._console.say(text)

    def close(self, misses_within_s: float) -> None:
        """Write the run's end, with its report where its record can be read.

        Blocks as `report_soon` does, and until all is written, 30 s at most.
        """
        end = self._run.end
        if end is not None:
            report = None
            try:
                report = report_soon(self._run.record, misses_within_s)
            except StoreError as error:  # the job has ended as it has
                self._console.say(f"no report: run {self._run.name} can't be read: {error}")
            emit_run_ended(self._writer, end, report, superseded=self._run.superseded)
        self._printer.flush(_LAST_S)
