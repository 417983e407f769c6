"""`hotstart doctor`: what a launch would use here, and what would stop it.

Each probe runs on a thread of its own within a bound, and tells its lines as it finds them; one
that has no answer in time is told as such. Nothing here needs Ray, a network or a device to work.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hotstart.conf.load import LoadedJob


@dataclass(frozen=True)
class Line:
    """One thing that a launch would use.

    text: what would be used. source: where that came from, as far as there was a choice. problem:
    what is wrong with it, and what to do; empty where nothing is. stops: whether a launch would
    fail by it.
    """

    subject: str
    text: str
    source: str = ""
    problem: str = ""
    stops: bool = False


@dataclass(frozen=True)
class Asked:
    """What is examined: a job, or without one what any job gets by default; and `--address`.

    `starts_ray` says that Ray would be started here, so that workers are this machine's.
    """

    job: LoadedJob
    has_job: bool
    address: str | None
    starts_ray: bool

    def origin(self, key: str) -> str:
        """Where a setting of the job came from: `job.yaml:12`, `default`, ..."""
        return self.job.origins.get(key, "default")


@dataclass(frozen=True)
class Probe:
    """Something to look at, and how long that may take."""

    subject: str
    look: Callable[[Asked], Iterator[Line]]
    bound_s: float


def examine(asked: Asked, probes: Sequence[Probe]) -> list[Line]:
    """The lines of all probes, in the order of these. Blocks as long as the longest bound."""
    looks = [_Look(probe, asked) for probe in probes]
    return [line for look in looks for line in look.lines()]


def would_launch(lines: Sequence[Line]) -> bool:
    """Whether nothing was found that would stop a launch."""
    return not any(line.stops for line in lines)


def render(lines: Sequence[Line]) -> Iterator[str]:
    """For people: a line each, and one more for what is wrong with it."""
    width = max(len(line.subject) for line in lines)
    for line in lines:
        mark = "STOP" if line.stops else "note" if line.problem else "ok"
        source = f"  [{line.source}]" if line.source else ""
        yield f"{mark:<4}  {line.subject:<{width}}  {line.text}{source}"
        if line.problem:
            yield f"{'':<4}  {'':<{width}}  -> {line.problem}"
    stopping = sum(line.stops for line in lines)
    noted = sum(bool(line.problem) for line in lines) - stopping
    yield (
        f"{stopping} would stop a launch, {noted} to know"
        if stopping or noted
        else "nothing would stop a launch"
    )


class _Look:
    """A probe under way, on a thread that nobody waits for beyond its bound."""

    def __init__(self, probe: Probe, asked: Asked) -> None:
        self._probe = probe
        self._asked = asked
        self._found: list[Line] = []
        self._until = time.monotonic() + probe.bound_s
        self._thread = threading.Thread(target=self._run, name=f"doctor-{probe.subject}")
        self._thread.daemon = True
        self._thread.start()

    def lines(self) -> list[Line]:
        self._thread.join(max(0.0, self._until - time.monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            bound_s = self._probe.bound_s
            late = f"no answer within {bound_s:g} s; a launch would wait for it too"
            found.append(Line(self._probe.subject, "not known", problem=late))
        return found

    def _run(self) -> None:
        try:
            for line in self._probe.look(self._asked):
                self._found.append(line)
        except Exception as error:  # a probe that fails must not hide what the others found
            said = f"could not be looked at: {type(error).__name__}: {error}"
            self._found.append(Line(self._probe.subject, "not known", problem=said))


def to_json(lines: Sequence[Line]) -> dict[str, object]:
    """For machines."""
    return {
        "would_launch": would_launch(lines),
        "lines": [dataclasses.asdict(line) for line in lines],
    }
