"""Kills a real process with -9 at one step of what it does: see `STEPS`.

Its folder is put first on PYTHONPATH of a test's processes, and HOTSTART_TEST_CRASH names another
folder, for messages between the test and them:

    armed     the name of the step at which a process is to die; where a second line is there, it
              is the id of the process that dies in its place
    struck    made with O_EXCL as that happens, so it happens once: the id of the process that
              dies, and the time on the monotonic clock

A file and not a variable alone, as Ray's workers may be started before it is known at which step
their next job is to die. Imports nothing by itself: it waits for the modules of the steps, and
without HOTSTART_TEST_CRASH for nothing.
"""

import os
import sys

TRAIN = "jit_train"  # the program whose entry is followed
UNKEPT = "jit_unkept"  # one that is compiled and not stored

_LINK = "os:link"
_RESOLVER = "hotstart.launcher.agent_resolver:AgentResolver."
_SHARED = "hotstart.cache.shared:"
_SERVING = "hotstart.cache.serving:Serving."
_ACTIVE = "hotstart.cache.active:"
_UPSTREAM = "hotstart.launcher.upstream:Upstream."
_LEASES = "hotstart.cache.leases:StoreLeases."
_HOST = "hotstart.launcher.host_cache:HostCache."
_UPLOADS = "hotstart.launcher.host_uploads:HostUploads."
_CLIENT = "hotstart.cache.gcs_client:GcsClient."
_STORE = "hotstart.launcher.host_store:HostStore."
_SOURCES = "hotstart.launcher.sources:Sources."
_DESK = "hotstart.launcher.coordinator_desk:Desk."
_RECORD = "hotstart.launcher.record:RunRecord."
_OWNERSHIP = "hotstart.launcher.ownership:Ownership."
_GANG = "hotstart.launcher.gang:Gang."

# `<role>: <step>`: a function, when to die with respect to it, and texts that its arguments must
# hold. In the order in which one entry, and one run, come to them.
STEPS = {
    "worker: before the claim": (_RESOLVER + "resolve", "before", TRAIN),
    "worker: after the claim": (_RESOLVER + "resolve", "after", TRAIN),
    "worker: before compiling": (_SERVING + "around_compile", "before", TRAIN),
    "worker: compiled": (_SERVING + "around_compile", "after", TRAIN),
    "worker: before encoding": (_SHARED + "encode", "before", TRAIN),
    "worker: encoded": (_SHARED + "encode", "after", TRAIN),
    "worker: entry half in the node directory": (_LINK, "before", TRAIN),
    "worker: before publish": (_RESOLVER + "publish", "before", TRAIN),
    "worker: published": (_RESOLVER + "publish", "after", TRAIN),
    "worker: before the release": (_RESOLVER + "release", "before", UNKEPT),
    "worker: released": (_RESOLVER + "release", "after", UNKEPT),
    "worker: before the last flush": (_ACTIVE + "flush_at_exit", "before"),
    "reading worker: before the node directory": (
        _SHARED + "SharedCache._get_from_node",
        "before",
        TRAIN,
    ),
    "reading worker: entry read": (_SHARED + "SharedCache._get_from_node", "after", TRAIN),
    "agent: before resolving": (_UPSTREAM + "resolve", "before", TRAIN),
    "agent: before the lease": (_LEASES + "_claim", "before", TRAIN),
    "agent: leased": (_LEASES + "_claim", "after", TRAIN),
    "agent: before publish": (_HOST + "_publish", "before", TRAIN),
    "agent: before the upload's mark": (_UPLOADS + "upload", "before", TRAIN),
    "agent: before the upload": (_UPLOADS + "_copy", "before", TRAIN),
    "agent: upload half done": (_CLIENT + "request", "half", TRAIN, "entries/"),
    "agent: uploaded": (_UPLOADS + "_unmark", "before", TRAIN),
    "agent: mark removed": (_UPLOADS + "_unmark", "after", TRAIN),
    "agent: before the lease's release": (_LEASES + "_let_go", "before", TRAIN),
    "agent: lease released": (_LEASES + "_let_go", "after", TRAIN),
    "agent: before handing out": (_STORE + "hand_out", "before", TRAIN),
    "agent: handed out": (_STORE + "hand_out", "after", TRAIN),
    "agent: fetched from a peer": (_SOURCES + "fetch", "after", TRAIN),
    "reading agent: before the bucket": (_STORE + "read_far", "before", TRAIN),
    "reading agent: entry read": (_STORE + "read_far", "after", TRAIN),
    "reading agent: entry half in the node directory": (_LINK, "before", TRAIN),
    "reading agent: entry in the node directory": (_STORE + "keep", "after", TRAIN),
    "coordinator: before a claim": (_DESK + "handle", "before", "claims", TRAIN),
    "coordinator: after a claim": (_DESK + "handle", "after", "claims", TRAIN),
    "coordinator: before a publication": (_DESK + "handle", "before", "publish", TRAIN),
    "coordinator: after a publication": (_DESK + "handle", "after", "publish", TRAIN),
    "coordinator: told that it is stored": (_DESK + "handle", "after", "stored", TRAIN),
    "driver: before the run is made": (_RECORD + "create_fact", "before", "created"),
    "driver: run half made": (_RECORD + "create_fact", "after", "created"),
    "driver: before the claim": (_RECORD + "create_fact", "before", "owner/00000001/00000000"),
    "driver: claimed": (_RECORD + "create_fact", "after", "owner/00000001/00000000"),
    "driver: agents placed": (_GANG + "open_cache", "after"),
    "driver: before an attempt's start": (
        _RECORD + "create_fact",
        "before",
        "attempts/00001/start",
    ),
    "driver: between attempt start and gang start": (_GANG + "start", "before"),
    "driver: gang started": (_GANG + "start", "after"),
    "driver: before a beat": (_RECORD + "create_fact", "before", "owner/00000001/00000001"),
    "driver: beat, the old one there": (_OWNERSHIP + "_delete_older", "before"),
    "driver: before the first step's reports": (_RECORD + "first_step", "before"),
    "driver: before a manifest": (_RECORD + "keep_manifest", "before"),
    "driver: before an attempt's end": (_RECORD + "create_fact", "before", "attempts/00001/end"),
    "driver: attempt ended": (_RECORD + "create_fact", "after", "attempts/00001/end"),
    "driver: before the run's end": (_RECORD + "create_fact", "before", "end/00000001"),
    "driver: run ended": (_RECORD + "create_fact", "after", "end/00000001"),
}

_FOLDER = os.environ.get("HOTSTART_TEST_CRASH", "")


def _kind():
    if "HOTSTART_WORKER" in os.environ:
        return "worker"
    # Python has no sys.argv yet as it runs this file.
    driver = os.path.basename(getattr(sys, "argv", [""])[0]) == "hotstart"  # noqa: PTH119
    return "driver" if driver else "agent"


_KINDS = {"reading worker": "worker", "reading agent": "agent", "coordinator": "agent"}


def _come_to(step):
    """Die here, if this is where it is to be, and nobody has died for it yet."""
    import signal
    import time

    try:
        with open(os.path.join(_FOLDER, "armed")) as file:  # noqa: PTH118
            armed, *victim = file.read().splitlines()
    except (OSError, ValueError):
        return
    role = step.partition(":")[0]
    if armed != step or _kind() != _KINDS.get(role, role):
        return
    try:
        path = os.path.join(_FOLDER, "struck")  # noqa: PTH118
        struck = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    dies = int(victim[0]) if victim else os.getpid()
    os.write(struck, f"{dies} {time.monotonic()}\n".encode())
    os.kill(dies, signal.SIGKILL)


def _holds(text, values):
    for value in values:
        if isinstance(value, str):
            found = text in value
        elif isinstance(value, os.PathLike):
            found = text in os.fspath(value)
        elif isinstance(value, bytes):
            found = text.encode() in value[:4096]
        elif isinstance(value, list | tuple):
            found = _holds(text, value)
        elif isinstance(value, dict):
            found = _holds(text, value.values())
        elif hasattr(value, "operation"):  # a program on its way to the compiler
            found = text in str(value.operation.attributes["sym_name"])
        else:
            found = text in str(getattr(value, "key", ""))
        if found:
            return True
    return False


def _around(step, stock, when, texts):
    import functools

    @functools.wraps(stock)
    def stepping(*args, **kwargs):
        here = all(_holds(text, (*args, *kwargs.values())) for text in texts)
        if here and when == "before":
            _come_to(step)
        result = stock(*args, **kwargs)
        if here and when == "after":
            _come_to(step)
        return result

    return stepping


def _half(step, stock, texts):
    """Around a request: when the second half of its body is asked for, the first has been sent."""
    import functools
    import io

    class Half(io.BytesIO):
        def __len__(self):
            return len(self.getbuffer())

        def read(self, size=-1, /):
            if self.tell() == 0:
                return super().read(len(self) // 2)
            _come_to(step)
            return super().read(size)

    @functools.wraps(stock)
    def sending(*args, data=None, **kwargs):
        if data is not None and all(_holds(text, (data,)) for text in texts):
            data = Half(data)
        return stock(*args, data=data, **kwargs)

    return sending


def _install(module):
    for step, (where, when, *texts) in STEPS.items():
        name, _, path = where.partition(":")
        if name != module.__name__:
            continue
        owner = module
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        stock = getattr(owner, last)
        new = _half(step, stock, texts) if when == "half" else _around(step, stock, when, texts)
        setattr(owner, last, new)


class _AfterImport:
    """Has the other finders find a module of a step, and wraps its functions once it is there."""

    def __init__(self, names):
        self._names = names

    def find_spec(self, name, path=None, target=None):
        if name not in self._names:
            return None
        for finder in list(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader):
        stock = loader.exec_module

        def exec_module(module):
            stock(module)
            _install(module)

        loader.exec_module = exec_module


if _FOLDER:
    _install(os)
    sys.meta_path.insert(0, _AfterImport({where.partition(":")[0] for where, *_ in STEPS.values()}))
