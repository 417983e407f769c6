"""The targets: each takes bytes, and fails by any error but the documented ones.

Where input is accepted, more must hold: what was read is written and read again as the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.entry import EntryMeta, decode, decode_named, encode, entry_digest, entry_name
from hotstart.cache.errors import EntryError
from hotstart.cache.signing import UNSEALED, Key, Keyring, Seal, SealedStore
from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_from_yaml, job_to_yaml, load_job
from hotstart.launcher.agent_cache import AgentCache, Seat
from hotstart.launcher.channel import _parse
from hotstart.launcher.coordinator import Connection
from hotstart.launcher.coordinator_desk import Desk
from hotstart.launcher.coordinator_wire import Malformed, answer_from_line
from hotstart.launcher.errors import RecordDamaged
from hotstart.launcher.identity import OwnerIdentity
from hotstart.launcher.manifest import Manifest, ManifestEntry, ManifestError
from hotstart.launcher.outcome import Outcome
from hotstart.launcher.plan import AttemptPlan, Program, WorkerPlan
from hotstart.launcher.record import RunRecord
from hotstart.launcher.report import build_report, render_text
from hotstart.launcher.watchdog import StillLimits, WorkerWatch
from hotstart.launcher.workers import WorkerProcess
from tests.support.memory_store import MemoryStore

KEY = "jit_step-" + "ab" * 32
_SEAL = Seal(Keyring((Key(b"\x01" * 32),)), "gs://bucket/cache")
_ENTRY = encode(KEY, b"payload", EntryMeta(1.5, "0.12.0", "0.12.0", "cpu", "host/1"))
_SEALED = encode(KEY, b"payload", EntryMeta(), _SEAL)


@dataclass(frozen=True)
class Target:
    """One reader of bytes. `run` raises where it does not do what it should."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()


def entry(data: bytes) -> None:
    """The decoder of entries, with a key and without; without one nothing can be forged."""
    for name, read in (
        (entry_name(KEY), lambda seal: decode(KEY, data, seal)),
        (entry_name(KEY), lambda seal: decode_named(entry_name(KEY), data, seal)),
    ):
        for seal in (UNSEALED, _SEAL):
            try:
                found = read(seal)
            except EntryError:
                continue
            assert entry_name(found.key) == name
            assert seal is UNSEALED or data == _SEALED
            again = decode(found.key, encode(found.key, found.payload, found.meta))
            assert (again.payload, again.meta) == (found.payload, found.meta)
    with contextlib.suppress(EntryError):
        assert len(entry_digest(data)) == 32


def manifest(data: bytes) -> None:
    """The reader of manifests."""
    try:
        found = Manifest.from_json(data)
    except ManifestError:
        return
    assert Manifest.from_json(found.to_json()) == found


def job(data: bytes) -> None:
    """The loader of job files."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text("")
        path = Path(folder, "job.yaml")
        path.write_bytes(data)
        try:
            loaded = load_job(path, [], {})
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
            return
        assert job_from_yaml(job_to_yaml(loaded.config)) == loaded.config


def record(data: bytes) -> None:
    """The readers of a run's record: any of its facts may be anything, under any name."""
    store = MemoryStore()
    made = _recorded(store)
    names = [stat.name for stat in store.list("run/")]
    choice, content = (data[0], data[1:]) if data else (0, b"")
    if choice < len(names):
        name = names[choice]
        found = store.stat(name)
        assert found is not None
        store.delete(name, found.generation)
    else:
        head, _, content = content.partition(b"\n")
        name = f"run/{head.decode(errors='replace')}"
    try:
        store.create(name, content)
    except ValueError:
        return  # no name of an object
    read = RunRecord(SealedStore(store, UNSEALED), "run")  # type: ignore[arg-type]
    me = OwnerIdentity.of_this_process()
    read.summary(me)
    read.manifest()
    read.last_start()
    read.next_attempt()
    with contextlib.suppress(RecordDamaged):
        read.job_yaml()
    built = build_report(read.read(me))
    json.dumps(built)
    from rich.console import Console

    render_text(built, Console(file=io.StringIO(), width=100))
    assert made.name == "run"


def channel(data: bytes) -> None:
    """What an agent hears from a worker: whatever the lines are, none ends a thread of it."""
    worker = WorkerProcess(
        _PLAN,
        Path("/dev/null"),
        Path("/dev/null"),
        {},
        spawn=lambda environ: _Child(),  # type: ignore[arg-type, return-value]
        emit=lambda event: None,
        on_message=lambda worker, message: _CACHE.heard(0, message),
    )
    watch = WorkerWatch(0, "host", StillLimits(1.0, 1.0))
    for line in data.split(b"\n"):
        message = _parse(line)
        if isinstance(message, dict):
            with contextlib.suppress(
                AttributeError, KeyError, TypeError, ValueError, OverflowError
            ):
                worker.heard(message)  # `Child` logs it and reads on
            watch.look(worker.report, 1.0)
            worker.write_stacks()
            json.dumps(worker.report)


def wire(data: bytes) -> None:
    """Both ends of the coordinator's connections: one ends at each `_CUT`."""
    desk = Desk("token", 1.0)
    for number, part in enumerate(data.split(_CUT)):
        connection = _connection(desk)
        if number == 0 and part[:1] != b"\0":
            _receive(connection, b'["hello","token",1]\n')
        for start in range(0, len(part), 64):
            if connection._transport.is_closing():
                break
            _receive(connection, part[start : start + 64])
        desk.closed(connection, lambda *how: _Timer())  # type: ignore[arg-type, return-value]
    for line in data.split(b"\n"):
        with contextlib.suppress(Malformed):
            answer_from_line(line)


def _connection(desk: Desk) -> Connection:
    connection = Connection(desk, memoryview(bytearray(64)), 1.0)
    connection._transport, connection._hello = _Transport(), _Timer()  # type: ignore[assignment]
    connection._peer = ("192.0.2.1", 1)
    desk.opened(connection)
    return connection


def _receive(connection: Connection, data: bytes) -> None:
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


class _Transport:
    def __init__(self) -> None:
        self._closing = False

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        self._closing = True

    close = abort

    def write(self, data: bytes) -> None:
        assert not data or data.endswith(b"\n")
        for line in data.splitlines():
            if not line.startswith((b'["welcome",', b'["resumed",', b'["refused",', b'["taken",')):
                answer_from_line(line)

    def get_write_buffer_size(self) -> int:
        return 0


class _Timer:
    def cancel(self) -> None:
        pass


class _Child:
    """A child that takes what it is told."""

    pid = 0

    def __init__(self) -> None:
        self.channel = self

    def send(self, message: Mapping[str, Any]) -> None:
        json.dumps(message)

    def attach(self, listener: object) -> bool:
        return True

    def signal(self, number: int) -> None:
        pass


_PLAN = WorkerPlan(
    0, 0, 0.0, AttemptPlan("run", 1, 1, "h:1", True, 1.0, Program("a", None, (), (), "/"), None)
)


def _cache() -> AgentCache:
    cache = AgentCache("127.0.0.1")
    config = CacheConfig(f"{_FOLDER.name}/cache", max_size_bytes=None)
    cache.open(config, Seat(0), lambda host, key, digest: None)  # type: ignore[arg-type]
    cache.begin(1, {0: lambda message: None})
    return cache


def _recorded(store: MemoryStore) -> RunRecord:
    made = RunRecord.create(store, "run", "name: a\nscript: train.py\n", {"host": "a"}, 1.0)
    report = {"process_index": 0, "host": "a", "phases": {"first_step": 1.0}, "cache": {"hits": 1}}
    made.create_fact("owner/00000001/00000000", asdict(OwnerIdentity.of_this_process()))
    made.start_attempt(1, {"started_at_s": 1.0, "process_count": 1, "cache": {"location": "/a"}})
    made.first_step(1, [report])
    made.differences(1, "start", [{"name": "jax", "held": []}])
    made.worker_report(1, 0, report)
    made.stacks(1, {0: "Thread 0x1"})
    made.keep_manifest(1, Manifest.from_json(_MANIFEST))
    made.end_attempt(1, Outcome("failed", "why", 0), {"ended_at_s": 2.0, "hosts": [{"host": "a"}]})
    made.finish("failed", 1, "why", epoch=1)
    return made


_MANIFEST = Manifest(
    (
        ManifestEntry(KEY, 7, "ab" * 32, ((0, 3),), b"\x08\x01", (0, 1), True),
        ManifestEntry("other", 0, None, ((1, 1),), None, None, False),
    ),
    "0.12.0",
    "0.12.0",
    "cpu",
    4,
).to_json()
_REPORT = {
    "report": {
        "process_index": 0,
        "phases": {"user_code": 1.0, "first_step": 1.0},
        "cache": {"requests": 1, "in_flight": 1},
        "last_step": 3,
    }
}
_MESSAGES = (
    _REPORT,
    {"taken": True},
    {"modules": ["a"]},
    {"cache_required": "why"},
    {"facts": {"stage": "start", "values": {"jax": "1"}}},
    {"asked": {"key": KEY, "size_bytes": 1, "digest": None, "options": "", "devices": [0]}},
    {"ask": "planned", "request": 1},
    {"ask": "resolve", "request": 2, "key": KEY, "failed": []},
    {"ask": "probe", "request": 3, "key": KEY, "failed": []},
    {"ask": "publish", "request": 4, "key": KEY, "digest": "ab", "size_bytes": 1, "in_node": True},
    {"ask": "release", "key": KEY},
)
_LINES = (
    ["begin", 1],
    ["claims", [[1, KEY], [2, KEY, {"have": ["ab", 1], "failed": [1], "may_compile": False}]]],
    ["publish", 3, KEY, "ab", 1, True, False],
    ["absent", KEY],
    ["unstored", KEY],
    ["release", KEY],
    ["stored", KEY, "ab"],
    ["taken", 1],
    ["bye"],
    [1, "found", "ab", 1, [0], True],
    [2, "granted", True, None],
)


_CUT = b"\1"


def _lines(messages: tuple[Any, ...]) -> bytes:
    return b"\n".join(json.dumps(message).encode() for message in messages) + b"\n"


_FOLDER = tempfile.TemporaryDirectory(prefix="hs-fuzz-")  # removed as Python ends
_CACHE = _cache()
TARGETS = {
    "entry": Target(entry, (_ENTRY, _SEALED)),
    "job": Target(
        job,
        (
            b"script: train.py\nworkers: 4\ncache: {location: gs://b/c, strict: true}\n",
            b"name: a\nscript: train.py\nargs: [--a, '1']\nenv: {A: b}\ntimeouts: {step_s: 3}\n",
        ),
        (b"&a ", b"*a", b"!!python", b"<<: ", b"${name}", b"${oc.env:HOME}", b"\xff\xfe", b"1e999"),
    ),
    "record": Target(
        record,
        tuple(
            bytes([number]) + (store.get(stat.name) or b"")
            for store in (MemoryStore(),)
            if _recorded(store)
            for number, stat in enumerate(store.list("run/"))
        )
        + (b"\xffattempts/00002/end\n{}", b"\xffowner/00000002/00000000\n{}"),
    ),
    "manifest": Target(manifest, (_MANIFEST,), (b"1e400", b"NaN", b"-1", b"null", b"[[0, 3]]")),
    "channel": Target(channel, (_lines(_MESSAGES), *(_lines((m,)) for m in _MESSAGES))),
    "wire": Target(
        wire,
        (
            _lines(_LINES),
            *(_lines((line,)) for line in _LINES),
            _CUT.join((_lines(_LINES[:3]), _lines((["resume", "token", 1, 1, 1, 2], *_LINES[2:])))),
        ),
        (_CUT,),
    ),
}
