"""One compilation a program in the whole gang, counted from outside of hotstart."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.gcs_proxy import Fault, GcsProxy
from tests.support.launch import (
    Finished,
    Launched,
    RayNodes,
    Site,
    await_true,
    site,
)
from tests.support.plain_gang import PlainGang
from tests.support.programs_gang import RESULTS, SCRIPT, Member, meeting_place, read_members
from tests.support.ray_head import RayHead, ray_head

pytestmark = [pytest.mark.e2e, pytest.mark.internals]

PROGRAMS = ("everywhere", "mine", "spread", "fold")
MODULES = tuple(f"jit_{name}" for name in PROGRAMS)
METHODS = ("GET", "POST", "PUT", "DELETE")
NOT_STORED_S = 1000.0  # no program here takes as long to compile


@dataclass(frozen=True)
class Ran:
    """One launch, with what its processes counted in its last attempt."""

    finished: Finished
    members: list[Member]

    @property
    def compiled(self) -> Counter[str]:
        """How often each module was compiled in the gang."""
        return Counter(module for member in self.members for module in member.compiled)

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The report's counts of the last attempt."""
        workers = self.finished.report["attempts"][-1]["workers"]
        return [worker["cache"] for worker in workers]

    def stats(self, name: str) -> list[Any]:
        """One of hotstart's counters, by process."""
        return [member.stats[name] for member in self.members]


class Lab:
    """Launches of gangs that run named programs by a plan."""

    def __init__(self, site: Site, env: Mapping[str, str] | None = None) -> None:
        self.site = site
        self._env = env
        self._starts = 0

    def start(
        self,
        workers: int,
        programs: tuple[str, ...] = PROGRAMS,
        *,
        settings: dict[str, Any] | None = None,
        cache: dict[str, Any] | None = None,
        **plan: Any,
    ) -> Launched:
        """A launch, without waiting for it."""
        self._starts += 1
        path = self.plan = self.site.folder / f"plan-{self._starts}.json"
        path.write_text(json.dumps({"programs": programs, **plan}))
        job = {
            "script": str(SCRIPT),
            "args": [str(path)],
            "workers": workers,
            "resources_per_worker": {"CPU": 0.25},
            "cache": {"location": "cache", **(cache or {})},
            "restarts": {"failures": 0, "backoff_s": 0, "standby": False},
            **(settings or {}),
        }
        (self.site.folder / "job.yaml").write_text(json.dumps(job))
        return self.site.start_launch("job.yaml", "--json", env=self._env)

    def ran(self, launched: Launched, workers: int) -> Ran:
        """Block until it has ended and left nothing behind."""
        finished = launched.wait(120)
        self.site.assert_clean(5.0)
        report = finished.report
        attempt = report["attempts"][-1]["attempt"]
        logs = [self.site.log(report["run"], attempt, index) for index in range(workers)]
        return Ran(finished, [member for log in logs for member in read_members(log)])

    def run(self, workers: int, programs: tuple[str, ...] = PROGRAMS, **more: Any) -> Ran:
        """A launch to its end, which is a good one."""
        ran = self.ran(self.start(workers, programs, **more), workers)
        assert ran.finished.exit_code == 0, ran.finished.shown
        assert len(ran.members) == workers, ran.finished.shown
        return ran

    def tell(self, event: str) -> None:
        """Let processes go on that await this event."""
        (meeting_place(self.plan) / f"{event}.test").touch()

    def stored(self) -> set[str]:
        """The files of the cache's location."""
        root = self.site.folder / "cache"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def lab(nodes: RayNodes) -> Iterator[Lab]:
    with nodes.site() as here:
        yield Lab(here)


@pytest.fixture(scope="module")
def head(_session_proxy: GcsProxy) -> Iterator[RayHead]:
    with ray_head({"STORAGE_EMULATOR_HOST": _session_proxy.url}) as running:
        yield running


@pytest.fixture
def bucket_lab(head: RayHead, bucket: str) -> Iterator[Lab]:
    """Its agents reach the test's bucket: they have the environment of their hosts."""
    with site(head.address) as here:
        yield Lab(here, head.environ)


def results(*names: str) -> dict[str, float]:
    return {name: RESULTS[name] for name in names}


def held(*modules: str, of: int) -> dict[str, int]:
    return dict.fromkeys(modules, of)


def once(*modules: str) -> Counter[str]:
    return Counter(dict.fromkeys(modules, 1))


@pytest.mark.parametrize("workers", [2, 4])
def test_gang_compiles_each_program_once_and_none_when_warm(lab: Lab, workers: int) -> None:
    cold = lab.run(workers, hold=held(*MODULES, of=workers))
    assert [member.results for member in cold.members] == [results(*PROGRAMS)] * workers
    assert [member.requested for member in cold.members] == [list(MODULES)] * workers
    assert cold.compiled == once(*MODULES)
    # Every process but the one that compiles waits for it.
    assert sum(cold.stats("waits")) == (workers - 1) * len(MODULES)
    for member, counts in zip(cold.members, cold.workers, strict=True):
        assert counts["requests"] == len(MODULES)
        assert counts["compiled"] == len(member.compiled)
        assert counts["hits"] == counts["waits"] == len(MODULES) - len(member.compiled)
        assert counts["errors"] == 0
    warm = lab.run(workers)
    assert [member.results for member in warm.members] == [results(*PROGRAMS)] * workers
    assert warm.compiled == Counter()
    assert [counts["hits"] for counts in warm.workers] == [len(MODULES)] * workers
    assert [counts["compiled"] for counts in warm.workers] == [0] * workers


def test_gang_that_compiles_every_program_waits_for_nobody(lab: Lab) -> None:
    ran = lab.run(4, cache={"compile": "every"}, hold=held(*MODULES, of=4))
    assert [member.results for member in ran.members] == [results(*PROGRAMS)] * 4
    assert ran.compiled == Counter(dict.fromkeys(MODULES, 4))
    assert ran.stats("waits") == [0] * 4
    assert [counts["compiled"] for counts in ran.workers] == [4] * 4


def test_program_that_no_process_can_compile_fails_in_all_at_once(lab: Lab) -> None:
    launched = lab.start(4, ("everywhere", "nowhere"), hold=held("jit_nowhere", of=4))
    ran = lab.ran(launched, 4)
    assert ran.finished.exit_code == 1, ran.finished.shown
    assert ran.compiled == once("jit_everywhere") + Counter({"jit_nowhere": 4})
    assert ["no_such_target" in (member.error or "") for member in ran.members] == [True] * 4
    assert "no_such_target" in ran.finished.stderr
    ended_s = [member.ended_s for member in ran.members]
    assert max(ended_s) - min(ended_s) < 5


def test_program_that_its_holder_cannot_compile_is_compiled_by_the_others(lab: Lab) -> None:
    launched = lab.start(
        4,
        ("everywhere", "mine"),
        late=dict.fromkeys(("1", "2", "3"), "jit_mine"),
        hold=held("jit_mine", of=4),
        raises={"jit_mine": [0]},
    )
    ran = lab.ran(launched, 4)
    assert ran.finished.exit_code == 1, ran.finished.shown
    assert [member.error for member in ran.members] == [
        "ValueError: jit_mine cannot be compiled in process 0",
        None,
        None,
        None,
    ]
    assert [member.results for member in ran.members[1:]] == [results("everywhere", "mine")] * 3
    assert [member.compiled.count("jit_mine") for member in ran.members] == [1] * 4
    assert "ValueError: jit_mine cannot be compiled in process 0" in ran.finished.stderr
    ended_s = [member.ended_s for member in ran.members]
    assert max(ended_s) - min(ended_s) < 5


def test_programs_that_are_not_stored_are_waited_for_once(lab: Lab) -> None:
    ran = lab.run(
        4,
        ("mine", "forget", "mine"),
        cache={"min_compile_time_s": NOT_STORED_S},
        hold=held("jit_mine", of=4),
    )
    assert [member.results for member in ran.members] == [results("mine", "forget")] * 4
    assert [member.compiled for member in ran.members] == [["jit_mine"] * 2] * 4
    # The first time nobody can know; then all compile side by side.
    assert sum(ran.stats("waits")) == 3
    assert [name for name in lab.stored() if "jit_mine" in name] == []


@pytest.mark.parametrize("name", ["pure", "told"])
def test_program_with_a_host_callback_calls_its_own(lab: Lab, name: str) -> None:
    module = f"jit_{name}"
    cold = lab.run(2, (name,), hold=held(module, of=2))
    warm = lab.run(2, (name,))
    assert [member.results for member in cold.members + warm.members] == [results(name)] * 4
    # JAX 0.10 stores no such program.
    stores = importlib.metadata.version("jax") >= "0.12"
    assert cold.compiled == Counter({module: 1 if stores else 2})
    assert warm.compiled == Counter({} if stores else {module: 2})
    assert sum(cold.stats("waits")) == 1


def test_probes_for_profiles_take_no_lease(lab: Lab) -> None:
    options = {"jax_compilation_cache_expect_pgle": True}
    cold = lab.run(4, options=options, hold=held(*MODULES, of=4))
    assert [member.results for member in cold.members] == [results(*PROGRAMS)] * 4
    assert cold.compiled == once(*MODULES)
    assert sum(cold.stats("waits")) == 3 * len(MODULES)
    assert cold.stats("requests") == [len(MODULES)] * 4
    warm = lab.run(4, options=options)
    assert [member.results for member in warm.members] == [results(*PROGRAMS)] * 4
    assert warm.compiled == Counter()
    assert warm.stats("hits") == [len(MODULES)] * 4


def test_program_of_two_processes_is_compiled_by_one_of_them(lab: Lab) -> None:
    names = ("everywhere", "upper", "mine")
    hold = held("jit_upper", of=2) | held("jit_everywhere", "jit_mine", of=4)
    cold = lab.run(4, names, hold=hold)
    some = results("everywhere", "mine")
    assert [member.results for member in cold.members] == [some, some] + [results(*names)] * 2
    assert cold.compiled == once("jit_everywhere", "jit_upper", "jit_mine")
    assert sum(cold.stats("waits")) == 3 + 1 + 3
    assert sum("jit_upper" in name for name in lab.stored()) == 1
    warm = lab.run(4, names)
    assert [member.results for member in warm.members] == [some, some] + [results(*names)] * 2
    assert warm.compiled == Counter()


def test_read_that_fails_in_one_process_is_asked_again(bucket_lab: Lab, bucket: str) -> None:
    cache = {"location": bucket, "load_ahead": False}
    bucket_lab.run(2, cache=cache)
    once_bad = bucket_lab.run(2, cache=cache, flip={"1": [True]})
    assert [member.results for member in once_bad.members] == [results(*PROGRAMS)] * 2
    assert once_bad.compiled == Counter()
    assert once_bad.stats("errors") == [0, 1]
    # What a process can't read a second time, though the agent can, it reads from the bucket.
    twice_bad = bucket_lab.run(2, cache=cache, flip={"1": [True, False, True]})
    assert [member.results for member in twice_bad.members] == [results(*PROGRAMS)] * 2
    assert twice_bad.compiled == Counter()
    assert twice_bad.stats("errors") == [0, 2]
    again = bucket_lab.run(2, cache=cache)
    assert again.compiled == Counter()
    assert again.stats("errors") == [0, 0]


def test_read_that_fails_in_one_process_from_a_directory_compiles_nothing(lab: Lab) -> None:
    cache = {"load_ahead": False}
    lab.run(2, cache=cache)
    warm = lab.run(2, cache=cache, flip={"1": [True]})
    assert [member.results for member in warm.members] == [results(*PROGRAMS)] * 2
    assert warm.compiled == Counter()
    assert warm.stats("errors") == [0, 1]


@pytest.mark.parametrize("strict", [True, False])
def test_bucket_that_goes_away_ends_a_strict_run_only(
    bucket_lab: Lab, bucket: str, proxy: GcsProxy, strict: bool
) -> None:
    names = ("everywhere", "mine", "fold")
    launched = bucket_lab.start(
        4,
        names,
        cache={"location": bucket, "strict": strict, "deadline_s": 2},
        until={"1": "gone"},
    )
    launched.wait_for(r"^\[\d\] waits$", count=4)
    proxy.inject(*(Fault("reset", method, times=1 << 20) for method in METHODS))
    bucket_lab.tell("gone")
    ran = bucket_lab.ran(launched, 4)
    if strict:
        assert ran.finished.exit_code == 4, ran.finished.shown
        assert "the cache is required and cannot be used" in ran.finished.stderr
        assert [member.results for member in ran.members] == [results("everywhere")] * 4
        assert ran.compiled == once("jit_everywhere")
    else:
        assert ran.finished.exit_code == 0, ran.finished.shown
        assert [member.results for member in ran.members] == [results(*names)] * 4
        assert ran.compiled == once("jit_everywhere", "jit_mine", "jit_fold")
    assert ran.finished.seconds < 90


def test_read_only_gang_compiles_once_and_writes_nothing(lab: Lab) -> None:
    cold = lab.run(4, cache={"mode": "read-only"}, hold=held(*MODULES, of=4))
    assert [member.results for member in cold.members] == [results(*PROGRAMS)] * 4
    assert cold.compiled == once(*MODULES)
    assert lab.stored() == set()


def test_worker_killed_while_it_compiles_is_succeeded_in_the_next_attempt(lab: Lab) -> None:
    launched = lab.start(
        4,
        settings={"restarts": {"failures": 1, "backoff_s": 0, "standby": True}},
        forever={"jit_mine": 4},
    )
    [found] = launched.wait_for(r"compiles for ever (\d+)$")
    os.kill(int(found[1]), signal.SIGKILL)
    ran = lab.ran(launched, 4)
    assert ran.finished.exit_code == 0, ran.finished.shown
    assert [a["outcome"] for a in ran.finished.report["attempts"]] == ["failed", "done"]
    assert [member.results for member in ran.members] == [results(*PROGRAMS)] * 4
    assert ran.compiled == once("jit_mine", "jit_spread", "jit_fold")
    assert ran.finished.seconds < 90


@dataclass(frozen=True)
class Plain:
    """Plain processes, without the launcher, that share a location by leases in it."""

    location: str
    folder: Path

    def gang(self, name: str, programs: tuple[str, ...] = PROGRAMS, **plan: Any) -> PlainGang:
        """A start of four processes, as a context."""
        path = self.plan(name)
        # In a bucket, the first question comes after the import of its client.
        path.write_text(json.dumps({"programs": programs, "settle_s": 1.5, **plan}))
        environment = {
            "HOTSTART_HOME": str(self.folder / "home"),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": None,
            "XLA_FLAGS": None,
        }
        return PlainGang(SCRIPT, [str(path), self.location], count=4, environment=environment)

    def run(self, name: str, **plan: Any) -> list[Member]:
        """A start to its end, which is a good one."""
        with self.gang(name, **plan) as gang:
            ended = gang.wait(90)
        failed = [process.output for process in ended if process.exit_code]
        assert [process.exit_code for process in ended] == [0] * 4, "\n".join(failed)
        return [member for process in ended for member in read_members(process.output)]

    def plan(self, name: str) -> Path:
        """The plan of a start."""
        return self.folder / f"{name}.json"


@pytest.fixture(params=["directory", "bucket"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Plain:
    if request.param == "bucket":
        return Plain(request.getfixturevalue("bucket"), tmp_path)
    return Plain(str(tmp_path / "cache"), tmp_path)


def compiled_in(members: list[Member]) -> Counter[str]:
    return Counter(module for member in members for module in member.compiled)


def test_plain_processes_compile_each_program_once_and_none_when_warm(plain: Plain) -> None:
    cold = plain.run("cold", hold=held(*MODULES, of=4))
    assert [member.results for member in cold] == [results(*PROGRAMS)] * 4
    assert compiled_in(cold) == once(*MODULES)
    for member in cold:
        assert member.stats["compiled"] == len(member.compiled)
        assert member.stats["waits"] == member.stats["hits"] == 4 - len(member.compiled)
        assert (member.stats["errors"], member.stats["flushed"]) == (0, True)
    warm = plain.run("warm")
    assert [member.results for member in warm] == [results(*PROGRAMS)] * 4
    assert compiled_in(warm) == Counter()
    assert [member.stats["waits"] for member in warm] == [0] * 4


def test_plain_process_killed_while_it_compiles_is_succeeded_by_one(plain: Plain) -> None:
    plan = {"apart": True, "forever": {"jit_mine": 1}, "hold": held("jit_mine", of=4)}
    with plain.gang("killed", ("mine",), **plan) as gang:
        place = meeting_place(plain.plan("killed"))
        await_true(lambda: any(place.glob("forever-jit_mine.*")), 60)
        [holder] = [int(path.suffix[1:]) for path in place.glob("forever-jit_mine.*")]
        (place / "ended.killed").touch()  # the others need not wait for it
        os.kill(gang.pids()[holder], signal.SIGKILL)
        killed_s = time.monotonic()
        ended = gang.wait(90)
    assert [process.exit_code for process in ended] == [
        -signal.SIGKILL if process.index == holder else 0 for process in ended
    ]
    members = [member for process in ended for member in read_members(process.output)]
    assert [member.results for member in members] == [results("mine")] * 3
    assert compiled_in(members) == once("jit_mine")
    assert [member.stats["waits"] for member in members] == [1] * 3
    assert max(member.ended_s for member in members) - killed_s < 15
