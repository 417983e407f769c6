"""A standby becomes a worker that can't be told from a fresh one, or gives way to a fresh one."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from hotstart.launcher import standby as standby_module
from hotstart.launcher import standby_pool as pool_module
from hotstart.launcher import workers as workers_module
from hotstart.launcher.agent import Agent
from hotstart.launcher.agent_cache import Seat
from hotstart.launcher.outcome import WorkerExit
from hotstart.launcher.plan import AttemptPlan, Program
from hotstart.launcher.standby import modules_to_import
from hotstart.launcher.workers import FirstStep, Output
from tests.support.launch import await_true, is_running

pytestmark = pytest.mark.unit

TRAIN = """
import os
{imports}
from hotstart.launcher import context
context.step(1)
print("first step of", os.getpid(), flush=True)
{after}
import time; time.sleep(600)
"""


class Host:
    """An agent without Ray, its program, and a folder of third-party modules."""

    def __init__(self, folder: Path) -> None:
        self.agent = Agent("127.0.0.1")
        self.agent.cache.open(None, Seat(0), ())
        self.folder = folder / "job"
        self.third_party = folder / "lib" / "site-packages"
        self.environ = {"JAX_PLATFORMS": "cpu"}
        self.seen: list[Any] = []
        self._cursor = 0
        for path in (self.folder, self.third_party):
            path.mkdir(parents=True)

    def plan(self, attempt: int, count: int) -> AttemptPlan:
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, [str(self.third_party), inherited]))
        return AttemptPlan(
            run="run-of-test-standby",
            attempt=attempt,
            process_count=count,
            coordinator="127.0.0.1:1",
            initialize=False,
            distributed_timeout_s=5.0,
            program=Program(
                str(self.folder / "train.py"), None, ("--x",), (str(self.folder),), str(self.folder)
            ),
            cache=None,
            environ={**self.environ, "PYTHONPATH": path},
            log_location=str(self.folder / "logs"),
            standby=True,
        )

    def program(self, imports: str = "", after: str = "") -> None:
        (self.folder / "train.py").write_text(TRAIN.format(imports=imports, after=after))

    def module(self, name: str, text: str) -> None:
        (self.third_party / f"{name}.py").write_text(text)

    def start(self, attempt: int, count: int = 1) -> dict[int, dict[str, Any]]:
        """Start an attempt; the reports of its workers once all of them have stepped."""
        self.agent.start(self.plan(attempt, count), tuple(range(count)), 0.0)
        return self.steps(count)

    def prepare(self, count: int = 1) -> dict[int, int]:
        """Prepare the first attempt; the process ids of its workers."""
        self.agent.prepare(self.plan(1, count), tuple(range(count)))
        return {index: child.pid for index, child in self.agent._early.items()}

    def steps(self, count: int) -> dict[int, dict[str, Any]]:
        reports: dict[int, dict[str, Any]] = {}
        while len(reports) < count:
            for event in self.take():
                if isinstance(event, FirstStep):
                    reports[event.process_index] = event.report
                failed = isinstance(event, WorkerExit) and not event.stopped
                assert not failed, self.lines()
        return reports

    def take(self) -> list[Any]:
        batch = self.agent.events(self._cursor)
        self._cursor = batch.next_cursor
        events = [event for _, event in batch.events]
        self.seen += events
        return events

    def lines(self) -> list[str]:
        return [line for e in self.seen if isinstance(e, Output) for line in e.lines]

    def said(self, start: str, count: int) -> list[str]:
        """Wait until workers have written as many lines that start so; their rest."""
        while len(found := [x for x in self.lines() if x.startswith(start)]) < count:
            assert self.take(), self.lines()
        return [line.removeprefix(start) for line in found]

    def ready(self, count: int = 1) -> dict[int, int]:
        """Wait until as many standbys have done their imports; their process ids."""
        kept = self.agent._standbys._kept
        await_true(lambda: [s.ready for s in list(kept.values())] == [True] * count, 30)
        return self.agent._standbys.pids()

    def worker_pids(self) -> dict[int, int]:
        return {worker.plan.process_index: worker.pid for worker in self.agent._workers}

    def end_attempt(self) -> None:
        self.agent.stop(0.0, False)
        self.agent.finish()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(pool_module.StandbyPool.__init__, "__defaults__", (0.0,))
    made = Host(tmp_path)
    yield made
    made.agent.close()


def test_standby_next_workers_are_the_standbys_with_imports_done(host: Host) -> None:
    host.module("big", "import sys\nBORN = 'train' in sys.argv[0]")
    host.program("import big")
    first = host.start(1, count=2)
    assert [first[i]["standby"] for i in (0, 1)] == [False, False]
    fresh = host.worker_pids()
    kept = host.ready(2)
    assert set(kept.values()).isdisjoint(fresh.values())
    host.end_attempt()
    second = host.start(2, count=2)
    assert host.worker_pids() == kept
    assert [second[i]["standby"] for i in (0, 1)] == [True, True]
    phases = second[0]["phases"]
    assert phases["process_start"] <= phases["import_jax"] <= phases["first_step"] < 1.0
    again = host.ready(2)
    assert set(again.values()).isdisjoint(kept.values())
    exits = [e for e in host.seen if isinstance(e, WorkerExit)]
    assert [(e.process_index, e.stopped) for e in sorted(exits, key=lambda e: e.process_index)] == [
        (0, True),
        (1, True),
    ]


FACTS = """
import big, json, gc, signal, sys, threading
import mine
class Here: pass
if True:
    print("facts", json.dumps({
        "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "file": __file__,
        "main": sys.modules["__main__"].Here is Here, "name": __name__,
        "threads": sorted(t.name for t in threading.enumerate()),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "signals": {str(n): getattr(h, "__qualname__", str(h))
                    for n in signal.valid_signals() for h in [signal.getsignal(n)]},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "policy": os.sched_getscheduler(0),
        "environ": {k: v for k, v in os.environ.items() if k not in ("HOTSTART_WORKER",)},
        "collector": [gc.isenabled(), gc.get_threshold()],
        "files": [os.readlink(f"/proc/self/fd/{n}").partition(":")[0] for n in (0, 1, 2)],
        "group": os.getpgid(0) == os.getsid(0) == os.getpid(),
    }))
"""


def test_standby_worker_sees_what_a_fresh_one_sees(host: Host) -> None:
    host.module("big", "import jax.numpy")
    (host.folder / "mine.py").write_text("")
    host.program(FACTS)
    host.start(1)
    host.ready()
    host.end_attempt()
    host.start(2)
    fresh, stood_by = map(json.loads, host.said("facts ", 2))
    assert fresh["environ"].pop("HOTSTART_ATTEMPT") == "1"
    assert stood_by["environ"].pop("HOTSTART_ATTEMPT") == "2"
    assert stood_by == fresh


def test_standby_imports_no_module_of_the_program(host: Host, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    for place, name in ((host.folder, "mine"), (host.third_party, "theirs")):
        (place / f"{name}.py").write_text(
            f"import os\nopen({str(seen)!r}, 'a').write(f'{name} {{os.getpid()}}\\n')\n"
        )
    host.program("import mine, theirs")
    host.start(1)
    [worker], [kept] = host.worker_pids().values(), host.ready().values()
    assert seen.read_text() == f"mine {worker}\ntheirs {worker}\ntheirs {kept}\n"


def test_standby_killed_before_the_next_attempt_a_fresh_worker_starts(host: Host) -> None:
    host.program()
    host.start(1)
    kept = host.ready()
    os.kill(kept[0], signal.SIGKILL)
    await_true(lambda: not host.agent._standbys.pids(), 5)
    host.end_attempt()
    assert host.start(2)[0]["standby"] is False


def test_standby_killed_unnoticed_is_replaced_within_the_attempt(host: Host) -> None:
    host.program()
    host.start(1)
    kept = host.ready()
    host.end_attempt()
    os.kill(kept[0], signal.SIGSTOP)  # it is handed its plan, and never takes it
    host.agent.start(host.plan(2, 1), (0,), 0.0)
    assert host.worker_pids() == kept
    os.kill(kept[0], signal.SIGKILL)
    assert host.steps(1)[0]["standby"] is False
    assert host.worker_pids() != kept


def test_standby_that_does_not_take_its_plan_in_time_is_replaced(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_TAKE_S", 0.2)
    host.program()
    host.start(1)
    kept = host.ready()
    host.end_attempt()
    os.kill(kept[0], signal.SIGSTOP)
    assert host.start(2)[0]["standby"] is False
    assert not is_running(kept[0])


def test_standby_of_another_environment_is_not_used(host: Host) -> None:
    host.program("print('color', os.environ['COLOR'])")
    host.environ["COLOR"] = "red"
    host.start(1)
    kept = host.ready()
    host.end_attempt()
    host.environ["COLOR"] = "blue"
    assert host.start(2)[0]["standby"] is False
    await_true(lambda: not is_running(kept[0]), 5)
    assert host.said("color ", 2) == ["red", "blue"]


def test_standby_still_importing_takes_its_plan_after_the_module_at_hand(
    host: Host, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    host.module(
        "slow",
        "import os, sys, time\n"
        "started = time.monotonic()\n"
        "print('slow import', flush=True)\n"
        "while not os.path.exists(" + repr(str(go_on)) + ") and time.monotonic() < started + 20:\n"
        "    time.sleep(0.01)\n",
    )
    host.module("later", "import os; print('later in', os.environ['HOTSTART_ATTEMPT'], flush=True)")
    host.program("import slow, later")
    go_on.touch()
    host.start(1)
    go_on.unlink()
    pids = host.agent._standbys.pids
    await_true(lambda: bool(pids()), 5)
    [standby] = host.agent._standbys._kept.values()
    await_true(lambda: b"slow import" in standby.said, 10)
    kept = pids()
    host.end_attempt()
    host.agent.start(host.plan(2, 1), (0,), 0.0)
    go_on.touch()
    assert host.steps(1)[0]["standby"] is True
    assert host.worker_pids() == kept
    assert host.said("later in ", 2) == ["1", "2"]


UNFIT = {
    "a thread that is no daemon": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), name='t').start()",
        "its import starts the thread t",
    ),
    "a backend": ("import jax\njax.devices()", "its import initializes a JAX backend"),
    "an exit": ("import os, sys\n'HOTSTART_ATTEMPT' in os.environ or sys.exit(3)",
                "its import raised SystemExit"),
}  # fmt: skip


@pytest.mark.parametrize("unfit", UNFIT)
def test_standby_made_unfit_by_a_module_does_without_it(
    host: Host, unfit: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, why = UNFIT[unfit]
    host.module("good", "")
    host.module("bad", text)
    host.program("import good, bad")
    with caplog.at_level(logging.WARNING):
        host.start(1)
        await_true(lambda: len(caplog.records) == 1, 30)
        host.ready()
    [message] = [record.getMessage() for record in caplog.records]
    assert message == f"the standby of process 0: bad: {why}"
    host.end_attempt()
    assert host.start(2)[0]["standby"] is True
    host.ready()
    assert len(caplog.records) == 1


def test_standby_whose_program_hides_a_third_party_module_does_without(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.module("wrapper", "import hidden")
    host.module("hidden", "")
    (host.folder / "hidden.py").write_text("MINE = True")
    host.program("import wrapper; assert wrapper.hidden.MINE")
    host.start(1)
    await_true(lambda: len(caplog.records) == 1, 30)
    [message] = [record.getMessage() for record in caplog.records]
    assert message == (
        "the standby of process 0: wrapper: it imports hidden, which the program has itself"
    )
    host.ready()
    host.end_attempt()
    assert host.start(2)[0]["standby"] is True


def test_standby_that_crashes_is_followed_by_one_with_jax_alone(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.module(
        "crash",
        "import os\n"
        "if 'HOTSTART_ATTEMPT' not in os.environ:\n"
        "    print('going down', flush=True)\n"
        "    os._exit(7)\n",
    )
    host.program("import crash")
    host.start(1)
    await_true(lambda: len(caplog.records) == 1, 30)
    host.ready()
    [message] = [record.getMessage() for record in caplog.records]
    assert message == "the standby of process 0: it ended with code 7\ngoing down"
    host.end_attempt()
    assert host.start(2)[0]["standby"] is True
    assert "going down" not in host.lines()


def test_standby_ends_with_the_run(host: Host) -> None:
    host.program()
    host.start(1)
    kept = host.ready()
    host.agent.stop(0.0, True)
    assert not is_running(kept[0])
    assert host.agent._standbys.pids() == {}


def test_standby_ends_with_its_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module.StandbyPool.__init__, "__defaults__", (0.0,))
    host = Host(tmp_path)
    host.program()
    host.start(1)
    kept = host.ready()
    host.agent.close()
    assert not is_running(kept[0])


def test_standby_worker_that_ends_takes_what_it_started_in_another_session(host: Host) -> None:
    host.program(
        after="import subprocess, sys\n"
        "code = 'import time; time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "print('child', child.pid, flush=True)\n"
    )
    host.start(1)
    host.ready()
    host.end_attempt()
    host.start(2)
    children = [int(pid) for pid in host.said("child ", 2)]
    assert [is_running(child) for child in children] == [False, True]
    os.kill(host.worker_pids()[0], signal.SIGKILL)
    await_true(lambda: not is_running(children[1]), 2)


def test_standby_is_not_kept_where_the_job_says_so(host: Host) -> None:
    host.program()
    plan = host.plan(1, 1)
    host.agent.start(AttemptPlan(**{**vars(plan), "standby": False}), (0,), 0.0)
    host.steps(1)
    host.end_attempt()  # its last messages have been read then
    assert host.agent._standbys._modules == {}


# Workers that are started before their plan is there.


def test_prepared_workers_become_those_of_the_first_attempt(host: Host) -> None:
    host.module("sitecustomize", "print('started early', flush=True)")
    host.program("print('attempt', os.environ['HOTSTART_ATTEMPT'])")
    prepared = host.prepare(2)
    reports = host.start(1, 2)
    assert host.worker_pids() == prepared
    assert [reports[i]["standby"] for i in (0, 1)] == [False, False]
    assert host.said("attempt ", 2) == ["1", "1"]
    assert host.said("started early", 2) == ["", ""]


def test_prepared_workers_import_jax_before_their_plan_is_there(host: Host, tmp_path: Path) -> None:
    imported = tmp_path / "imported"
    host.module("jax", f"import pathlib; pathlib.Path({str(imported)!r}).touch()")
    host.prepare()
    await_true(imported.exists, 10)


def test_prepared_workers_import_what_their_script_does_first(host: Host) -> None:
    host.module("early", "print('early', flush=True)")
    host.module("late", "print('late', flush=True)")
    host.program("import early\nprint('begins', flush=True)\nimport late")
    host.prepare()
    child = host.agent._early[0]
    heard: list[dict[str, Any]] = []
    assert child.attach(Hearing(heard))
    await_true(lambda: {"ready": True} in heard, 30)
    report = host.start(1)[0]
    assert report["standby"] is False
    assert [line for line in host.lines() if line in ("early", "begins", "late")] == [
        "begins",
        "late",
    ]


class Hearing:
    """Keeps what a child says before it is a worker's."""

    def __init__(self, heard: list[dict[str, Any]]) -> None:
        self._heard = heard

    def heard(self, message: dict[str, Any]) -> None:
        self._heard.append(message)

    def printed(self, data: bytes) -> None:
        pass

    def ended(self, code: int) -> None:
        pass


def test_prepared_worker_whose_early_imports_make_it_unfit_gives_way(host: Host) -> None:
    host.module("nosy", "import jax; jax.devices()")
    host.program("import nosy")
    prepared = host.prepare()
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    await_true(lambda: os.waitid(os.P_PID, prepared[0], ended) is not None, 30)
    host.start(1)
    assert host.worker_pids() != prepared


def test_prepared_worker_of_another_environment_is_not_used(host: Host) -> None:
    host.program("print('color', os.environ['COLOR'])")
    host.environ["COLOR"] = "red"
    prepared = host.prepare()
    host.environ["COLOR"] = "blue"
    host.start(1)
    assert host.said("color ", 1) == ["blue"]
    await_true(lambda: not is_running(prepared[0]), 5)


def test_prepared_worker_that_has_ended_gives_way_to_a_fresh_one(host: Host) -> None:
    host.program()
    prepared = host.prepare()
    os.kill(prepared[0], signal.SIGKILL)
    host.start(1)
    assert host.worker_pids() != prepared


def test_prepared_worker_takes_its_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_TAKE_S", 0.0)
    host.program()
    prepared = host.prepare()
    host.start(1)
    assert host.worker_pids() == prepared


def test_prepared_workers_end_with_their_agent(tmp_path: Path) -> None:
    host = Host(tmp_path)
    prepared = host.prepare()
    host.agent.close()
    assert not is_running(prepared[0])


def test_prepare_that_comes_after_the_start_does_nothing(host: Host) -> None:
    host.program()
    host.start(1)
    assert host.prepare() == {}


# What is imported ahead.


def module(name: str, file: str | None, spec_name: str | None = None) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = ModuleSpec(spec_name or name, None, origin=file)
    made.__spec__.has_location = file is not None
    return made


SITE = "/proj/.venv/lib/python3.11/site-packages"


def chosen(program: Program, **files: str | None) -> list[str]:
    names = {name.replace("__", "."): file for name, file in files.items()}
    return modules_to_import(program, {name: module(name, file) for name, file in names.items()})


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python3.11", SITE])
    return Program("/proj/src/train.py", None, (), ("/proj/src", "/proj/lib"), "/proj")


def test_modules_to_import_are_third_party_and_in_order(script: Program) -> None:
    found = chosen(
        script,
        flax=f"{SITE}/flax/__init__.py",
        flax__nnx=f"{SITE}/flax/nnx/__init__.py",
        model="/proj/src/model.py",
        helpers="/proj/lib/helpers.py",
        tool="/proj/tool.py",
        elsewhere="/opt/code/elsewhere.py",
        google=None,
        hotstart__launcher__context="/proj/launcher/context.py",
        optax=f"{SITE}/optax/__init__.py",
    )
    assert found == ["flax", "flax.nnx", "hotstart.launcher.context", "optax"]


def test_modules_to_import_leave_out_a_program_among_third_party_modules(script: Program) -> None:
    inside = Program(f"{SITE}/maker/train.py", None, (), (f"{SITE}/maker",), "/")
    files = {"maker__data": f"{SITE}/maker/data.py", "optax": f"{SITE}/optax.py"}
    assert chosen(inside, **files) == ["optax"]
    function = Program(None, "maker.train:main", (), (), "/")
    assert chosen(function, **files) == ["optax"]


def test_modules_to_import_leave_out_what_an_import_would_not_find(script: Program) -> None:
    class Odd:
        __spec__ = None

    lazy = module("lazy", f"{SITE}/lazy.py")
    importlib.util.LazyLoader  # noqa: B018
    lazy.__class__ = importlib.util._LazyModule  # type: ignore[attr-defined]
    found = modules_to_import(
        script,
        {
            "alias": module("alias", f"{SITE}/real.py", spec_name="real"),
            "lazy": lazy,
            "odd": Odd(),  # type: ignore[dict-item]
            "none": None,  # type: ignore[dict-item]
            "real": module("real", f"{SITE}/real.py"),
        },
    )
    assert found == ["real"]


# The priority of a standby.


def in_thread(check: Any) -> Any:
    found = []
    thread = threading.Thread(target=lambda: found.append(check()))
    thread.start()
    thread.join()
    return found[0]


def test_priority_that_could_not_be_restored_is_not_lowered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = os.sched_setscheduler

    def unprivileged(pid: int, policy: int, param: os.sched_param) -> None:
        if os.sched_getscheduler(pid) == os.SCHED_IDLE and policy != os.SCHED_IDLE:
            raise PermissionError(1, "Operation not permitted")
        real(pid, policy, param)

    monkeypatch.setattr(standby_module.os, "sched_setscheduler", unprivileged)

    def check() -> int:
        standby_module._Priority().lower()
        return os.sched_getscheduler(0)

    assert in_thread(check) == os.SCHED_OTHER


def test_priority_once_restored_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> list[int]:
        priority = standby_module._Priority()
        priority.restore()
        priority.lower()
        return [os.sched_getscheduler(0)]

    assert in_thread(check) == [os.SCHED_OTHER]


def test_modules_to_import_bear_an_import_while_they_are_listed(script: Program) -> None:
    modules = {f"m{i}": module(f"m{i}", f"{SITE}/m{i}.py") for i in range(300)}
    grown = itertools.count()

    def imports(phase: str, info: dict[str, int]) -> None:  # JAX's own lets other threads run
        modules[f"new{next(grown)}"] = module("new", None)

    gc.callbacks.append(imports)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        found = modules_to_import(script, modules)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(imports)
    assert found == [f"m{i}" for i in range(300)]
    assert next(grown) > 0
