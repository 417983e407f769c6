"""The worker's main: a plain Python process that ends up running the user's program.

Its agent starts it with the environment already in place and a socket pair, over which it gets
its plan: at once, or when the launch is ready, or after it has stood by (`standby.py`). In order:
the cache is installed, `jax.distributed` initialized (process 0 first), and then the user's code
runs on the main thread as `python script.py` would run it, with its own exit code. There is no
Ray in this process.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import ctypes
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import CacheRequired
from hotstart.cache.keyring import from_text
from hotstart.cache.requests import Request
from hotstart.cache.signing import Keyring
from hotstart.launcher import context, stacks, standby, worker_facts
from hotstart.launcher.agent_resolver import AgentResolver, asked_of
from hotstart.launcher.channel import Channel
from hotstart.launcher.environ import VISIBLE_GPUS
from hotstart.launcher.garbage import HeldBack
from hotstart.launcher.plan import AttemptPlan, WorkerPlan
from hotstart.launcher.preflight import stages_before_user_code
from hotstart.launcher.program import print_traceback, run_program
from hotstart.launcher.progress import Progress
from hotstart.launcher.worker_notice import WorkerNotice

logger = logging.getLogger("hotstart.launcher.worker")

CHANNEL_FD = "HOTSTART_CHANNEL_FD"
EXIT_CACHE_REQUIRED = 4
_PR_SET_PDEATHSIG = 1
_FAILED_FLUSH_S = 5.0
_DROP_AHEAD_S = 60.0
_STOPPED_EXIT = 128 + signal.SIGTERM


def main() -> None:
    """Run one worker; does not return where the program ends the process itself."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    garbage = HeldBack()
    channel = Channel(socket.socket(fileno=int(os.environ.pop(CHANNEL_FD))))
    messages = iter(channel)
    _log_apart()
    message = next(messages)
    stood_by = "standby" in message
    if order := message.get("standby") or message.get("early"):
        message = standby.stand_by(channel, messages, order, in_background=stood_by)
    channel.send({"taken": True})
    plan = WorkerPlan.from_json(message["plan"])
    keyring = from_text(message.pop("signing_keys"))  # this frame is in each traceback
    stacks.write_on_signal(message["stacks"])
    facts = worker_facts.start_facts(plan.attempt.cache, os.environ)
    channel.send(worker_facts.facts_message("start", facts))

    from hotstart import cache

    progress = Progress(
        channel, plan.process_index, plan.decided_at, cache.stats, stood_by, _imported(plan)
    )
    logging.getLogger("hotstart").addHandler(progress)
    progress.reached("process_start")
    notice = WorkerNotice(channel.send, plan.attempt.process_count, _flush_and_end)
    agent = AgentLink(messages, notice)
    threading.Thread(target=agent.obey, name="hotstart-agent", daemon=True).start()
    failed = True
    failed_exit = _FailedExit()
    try:
        _prepare(plan, keyring, progress, channel, agent, failed_exit, notice)
        if stages_before_user_code(plan.attempt.cache):
            agent.may_go_on.wait()  # for as long as it takes: who refuses ends this process
        context._reporter = _reporter(progress, garbage)
        context._notice = notice
        garbage.freeze()
        progress.reached("user_code")
        run_program(plan.attempt.program)
        failed = False
    except SystemExit as error:
        failed = error.code not in (None, 0)
        if failed:
            failed_exit.code = error.code if isinstance(error.code, int) else 1
        raise
    except Exception as error:
        required = _cache_required(error)
        if required is not None:  # the launcher says so, once for all workers
            channel.send({"cache_required": str(required), "rule": required.rule})
            if required is not error:
                print_traceback(error)
            failed_exit.code = EXIT_CACHE_REQUIRED
            sys.exit(EXIT_CACHE_REQUIRED)
        print_traceback(error)
        failed_exit.code = 1
        sys.exit(1)
    finally:
        channel.send({"over": True})
        notice.ended(progress.last_step, failed=failed)
        _end(progress, failed=failed)


def _log_apart() -> None:
    """Write hotstart's own messages to stderr, and leave the root logger as Python does.

    `logging.basicConfig` of the program does nothing where the root logger has a handler.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    own = logging.getLogger("hotstart")
    own.addHandler(handler)
    own.propagate = False  # not once more by the program's handlers


def _flush_and_end() -> None:
    from hotstart.cache import active  # imports jax

    active.flush_and_end(signal.SIGTERM)


def _imported(plan: WorkerPlan) -> Callable[[], list[str]] | None:
    """What a standby for this worker is to import, asked for at the first step."""
    if not plan.attempt.standby:
        return None
    return lambda: standby.modules_to_import(plan.attempt.program, sys.modules)


def _end(progress: Progress, *, failed: bool) -> None:
    """Wait for the program's own threads, as the interpreter would; flush; send the last report.

    After a failure peers may be stuck in a collective, so what is left is not waited for long.
    """
    from hotstart.cache import active

    if not failed:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
    active.flush_at_exit(_FAILED_FLUSH_S if failed else None)
    progress.close()


class _FailedExit:
    """Ends a failed process, once `code` is set, before JAX waits for the others to end too.

    JAX does so at exit, for five minutes, while they may be stuck in a collective with this
    process; and this process's end is what tells the agent. Handlers run last in, first out:
    registered right after jax is imported, this one comes after the program's own.
    """

    code: int | None = None

    def __call__(self) -> None:
        if self.code is not None:
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(self.code & 0xFF)


def _prepare(
    plan: WorkerPlan,
    keyring: Keyring,
    progress: Progress,
    channel: Channel,
    agent: AgentLink,
    failed_exit: Callable[[], None],
    notice: WorkerNotice,
) -> None:
    """Cache, then jax.distributed; the user's code comes after both."""
    import jax

    atexit.register(failed_exit)
    progress.reached("import_jax")
    attempt = plan.attempt
    if attempt.cache is not None:
        _enable_cache(plan.attempt, attempt.cache, keyring, progress, channel, agent)
        progress.reached("cache_enabled")
    initialize = _process_zero_first(jax.distributed.initialize, plan, notice)
    jax.distributed.initialize = initialize
    if attempt.initialize and attempt.process_count > 1:
        initialize()
        progress.reached("distributed")


def _enable_cache(
    attempt: AttemptPlan,
    config: CacheConfig,
    keyring: Keyring,
    progress: Progress,
    channel: Channel,
    agent: AgentLink,
) -> None:
    """Put the cache in place: the agent resolves its keys, and hears what JAX asks for."""
    from hotstart.cache import active, children

    resolver = None
    if config.compile == "once":
        resolver = AgentResolver(channel, on_wait=lambda: active.count(waits=1))
        agent.answers = resolver.answered
    request_facts = worker_facts.RequestFacts(channel.send)
    atexit.register(request_facts.close)  # before JAX takes its backends down

    def on_request(request: Request) -> None:
        progress.asked(request)
        channel.send({"asked": asked_of(request)})
        request_facts(request)

    active.enable(
        config,
        on_change=progress.counters_changed,
        resolver=resolver,
        keyring=keyring,
        on_request=on_request,
        on_described=lambda key, parts: channel.send({"described": key, "parts": parts}),
    )
    if attempt.in_children:
        children.offer(config, keyring)
    if resolver is not None and attempt.load_ahead:
        threading.Thread(
            target=_load_ahead, args=(resolver,), name="hotstart-plan", daemon=True
        ).start()


def _reporter(progress: Progress, garbage: HeldBack) -> Callable[[int], None]:
    """What `context.step` calls; what was loaded ahead for nothing goes a while after step 1."""

    from hotstart.cache import active

    def drop() -> None:
        active.drop_ahead()

    first = threading.Lock()

    def step(number: int) -> None:
        progress.step(number)
        if first.acquire(blocking=False):  # never released
            active.stepped()
            garbage.let_go()
            timer = threading.Timer(_DROP_AHEAD_S, drop)
            timer.daemon = True
            timer.start()

    return step


def _load_ahead(resolver: AgentResolver) -> None:
    from hotstart.cache import active
    from hotstart.cache.ahead import Planned

    active.load_ahead(
        [
            Planned(item["key"], base64.b64decode(item["options"]), tuple(item["devices"]))
            for item in resolver.planned()
        ]
    )


def _process_zero_first(
    stock: Callable[..., None], plan: WorkerPlan, notice: WorkerNotice
) -> Callable[..., None]:
    """`jax.distributed.initialize` with this gang's arguments as defaults.

    A client that asks before process 0 listens backs off for a whole second, so the others wait
    until its port answers. A script's own call after the launcher's is not an error.
    """
    attempt = plan.attempt

    @functools.wraps(stock)
    def initialize(*args: Any, **kwargs: Any) -> None:
        import jax

        if attempt.initialize and jax.distributed.is_initialized():
            logger.info("jax.distributed is initialized already; the script's call is left out")
            return
        if not args and "coordinator_address" not in kwargs:
            kwargs["coordinator_address"] = attempt.coordinator
            kwargs.setdefault("num_processes", attempt.process_count)
            kwargs.setdefault("process_id", plan.process_index)
            kwargs.setdefault("initialization_timeout", int(attempt.distributed_timeout_s))
            # Else JAX takes this host's share from Slurm or Open MPI, where it runs under them.
            kwargs.setdefault("cluster_detection_method", "deactivate")
            visible = os.environ.get(VISIBLE_GPUS, "")
            if attempt.platform == "gpu" and visible:
                kwargs.setdefault("local_device_ids", list(range(len(visible.split(",")))))
            if plan.process_index != 0:
                _wait_for_listener(attempt)
        stock(*args, **kwargs)
        notice.initialized()

    return initialize


def _wait_for_listener(attempt: AttemptPlan) -> None:
    """Block until the coordinator's port accepts, at most the time that initialize would."""
    host, _, port = attempt.coordinator.rpartition(":")
    deadline = time.monotonic() + attempt.distributed_timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5):
            return
        time.sleep(0.01)


class AgentLink:
    """What comes from the agent, on a thread of its own.

    The main thread may be stuck in a collective and never answer. `answers` gets each message
    that has a "request"; set it before anything is asked. `may_go_on` is set once all workers
    were found to have in common what they must.
    """

    def __init__(self, messages: Iterator[dict[str, Any]], notice: WorkerNotice) -> None:
        self._messages = messages
        self._notice = notice
        self.answers: Callable[[dict[str, Any]], None] = lambda message: None
        self.may_go_on = threading.Event()

    def obey(self) -> None:
        """Do what the agent says, until it tells this process to end or has gone itself."""
        for message in self._messages:
            if "request" in message:
                self.answers(message)
            elif "may_go_on" in message:
                self.may_go_on.set()
            elif "hold_s" in message:
                self._notice.noticed(float(message["hold_s"]), message["turn"])
            elif "stop_at" in message:
                self._notice.settled(message["stop_at"], message["turn"])
            elif "stop_within_s" in message:
                self._notice.stopping()
                ends_soon = not message.get("ask") or self._notice.ends_by_sigterm()
                # On a thread of its own: to flush, and to checkpoint, takes answers.
                threading.Thread(
                    target=_stop,
                    args=(float(message["stop_within_s"]), ends_soon),
                    name="hotstart-stop",
                    daemon=True,
                ).start()
        os.kill(os.getpid(), signal.SIGKILL)


def _stop(grace_s: float, ends_soon: bool) -> None:
    from hotstart import cache

    flusher = threading.Thread(target=cache.flush, args=(grace_s,), daemon=True)
    flusher.start()
    if not ends_soon:
        time.sleep(grace_s)  # user code may end by itself
    flusher.join(grace_s)
    os._exit(_STOPPED_EXIT)


def _cache_required(error: BaseException) -> CacheRequired | None:
    """The `CacheRequired` behind an error, which JAX may have wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CacheRequired):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
