"""The end of a run: the last fact that its driver records, also where the record is out.

A run without an end looks like one whose driver was lost: the next restart, or a watcher, would
start it once more. So a final end is tried for longer than anything else (`record_patience.py`), by
when hosts have been given back and only the driver itself waits.
"""

from __future__ import annotations

from collections.abc import Callable

from hotstart.cache.errors import StoreError
from hotstart.launcher.errors import first_line
from hotstart.launcher.facts import FinalState
from hotstart.launcher.outcome import GiveUp
from hotstart.launcher.record import RunRecord
from hotstart.launcher.record_patience import Patience

_STATES: dict[int, FinalState] = {0: "done", 130: "interrupted"}


def state_of_end(decision: GiveUp) -> FinalState:
    """The state of a run that ended like this."""
    return _STATES.get(int(decision.exit_code), "failed")


def result_of(decision: GiveUp) -> str:
    """What a run has come to, in words, with the exit code of its driver."""
    return f"{state_of_end(decision)}, exit code {int(decision.exit_code)}"


def is_final(decision: GiveUp) -> bool:
    """Whether nobody is to start the run again who is not told to."""
    return state_of_end(decision) != "interrupted"


def record_end(
    record: RunRecord,
    epoch: int,
    decision: GiveUp,
    *,
    may_restart: bool,
    patience: Patience,
    gives_up: Callable[[], bool],
    tell: Callable[[str], None],
) -> bool:
    """Record a run's end under the owner of `epoch`; whether it is there now.

    Blocks for as long as there is patience, or until `gives_up`. `tell` hears what to do where it
    failed. Raises nothing of the store's.
    """
    state, result = state_of_end(decision), result_of(decision)
    patience.over(result, is_final=is_final(decision) and not may_restart)

    def write() -> None:
        code, reason = int(decision.exit_code), decision.reason
        record.finish(state, code, reason, epoch=epoch, may_restart=may_restart)

    try:
        patience.keep(write, gives_up=gives_up)
        return True
    except StoreError as error:
        what_to_do = {
            "done": "so `hotstart status` will call it lost: do not restart it, it would go on "
            "from its last checkpoint",
            "interrupted": "so `hotstart status` will call it lost; it can be restarted as always",
            "failed": "so `hotstart status` will call it lost; a restart goes on from its last "
            "checkpoint, with fresh budgets",
        }[state]
        tell(
            f"the end of run {record.name} ({result}) is not in its record: {first_line(error)}; "
            f"{what_to_do}"
        )
        return False
