"""The coordinator under 1,000 agents that claim 200 keys each: claims a second, latency, memory.

    python tests/bench/claims.py [--agents 1000] [--keys 200] [--offered 5000] [--rounds 3]

A real `Coordinator` in a process of its own; the agents are TCP connections of one other process,
which speak its wire format and have one claim open at a time, in the same order of keys. Whoever
is granted a key publishes it at once. Twice, each time with a fresh coordinator:

- closed loop: every agent claims its next key as soon as the one before is resolved;
- open loop: claims are due at a fixed rate; latency runs from when a claim was due, so that a
  late answer also counts for the claims behind it. Claims that had to wait for the holder of
  their key (asked before it had published) are told apart.

Beside the open loop, a server that only echoes is asked at the same rate, for a quarter as long:
its p99 is what the machine and the simulated agents take by themselves. Clients and server share
the machine. Needs neither JAX nor Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hotstart.launcher.coordinator import Coordinator
from hotstart.launcher.coordinator_session import TELL_EVERY

TARGET_PER_S = 5000.0
TARGET_P99_MS = 50.0
_CONNECT_AT_ONCE = 200
_PUBLISH = 1_000_000
_CLAIM = b'["claims",[['
_TICK_S = 0.001
_LIMIT_S = 300.0


def measure(
    *, agents: int = 1000, keys: int = 200, offered_per_s: float = TARGET_PER_S, rounds: int = 3
) -> list[dict[str, Any]]:
    """The bench's rows; blocks for about three minutes. Medians of `rounds`."""
    closed = [_run("closed loop", agents, keys, 0.0) for _ in range(rounds)]
    opened, echoed = [], []
    for _ in range(rounds):
        opened.append(_run("open loop", agents, keys, offered_per_s))
        echoed.append(_run("echo", agents, max(1, keys // 4), offered_per_s))
    rate = statistics.median(run["claims_per_s"] for run in closed)
    p99_ms = statistics.median(run["p99_ms"] for run in opened)
    beside = {
        "p50_ms": statistics.median(run["p50_ms"] for run in opened),
        "p99_ms": p99_ms,
        "echo_p99_ms": statistics.median(run["p99_ms"] for run in echoed),
        "offered_per_s": offered_per_s,
        "all_resolved_s": statistics.median(run["all_resolved_s"] for run in closed),
        "coordinator_peak_mb": max(run["coordinator_peak_mb"] for run in closed + opened),
    }
    row = {
        "slug": "claims",
        "what": f"coordinator, {agents:,} simulated agents x {keys} keys: claims a second",
        "ours": rate,
        "theirs": None,
        "unit": "claims/s",
        "ratio": None,
        "target": TARGET_PER_S,
        "met": rate >= TARGET_PER_S and p99_ms < TARGET_P99_MS,
        **beside,
        "details": closed + opened + echoed,
    }
    return [row]


def main() -> None:
    """Run the bench, or one of its two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--offered", type=float, default=TARGET_PER_S, help="claims a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["coordinator", "echo", "agents"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is None:
        rows = measure(
            agents=options.agents,
            keys=options.keys,
            offered_per_s=options.offered,
            rounds=options.rounds,
        )
        print(json.dumps(rows, indent=2))
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    if options.part == "coordinator":
        _serve()
    elif options.part == "echo":
        asyncio.run(_serve_echo())
    else:
        where = json.loads(sys.stdin.readline())
        agents = _Agents(options.agents, options.keys, options.offered, where)
        print(json.dumps(asyncio.run(agents.run())))


def _run(kind: str, agents: int, keys: int, offered_per_s: float) -> dict[str, Any]:
    """One run with a server of its own; `offered_per_s` 0 is the closed loop."""
    with _part("echo" if kind == "echo" else "coordinator") as server:
        where = _read(server)
        size = [f"--agents={agents}", f"--keys={keys}", f"--offered={offered_per_s}"]
        with _part("agents", *size) as clients:
            _write(clients, where)
            result = _read(clients)
        _write(server, {})
        usage = _read(server)
    return (
        {"kind": kind}
        | result
        | {
            "coordinator_peak_mb": usage["peak_mb"],
            "coordinator_idle_mb": where["idle_mb"],
            "coordinator_cpu_s": usage["cpu_s"],
            "load_average": os.getloadavg()[0],
        }
    )


@contextmanager
def _part(name: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process of the bench ended: {process.args}")
    return cast(dict[str, Any], json.loads(line))


def _write(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _serve() -> None:
    coordinator = Coordinator("127.0.0.1")
    where = {"address": coordinator.address, "token": coordinator.token, "idle_mb": _peak_mb()}
    print(json.dumps(where), flush=True)
    sys.stdin.readline()
    print(json.dumps({"peak_mb": _peak_mb(), "cpu_s": time.process_time()}), flush=True)
    coordinator.close()


async def _serve_echo() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, "127.0.0.1", 0, backlog=4096)
    address = server.sockets[0].getsockname()
    print(json.dumps({"address": address, "token": "", "idle_mb": _peak_mb()}), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    print(json.dumps({"peak_mb": _peak_mb(), "cpu_s": time.process_time()}), flush=True)
    server.close()


class _Echo(asyncio.Protocol):
    """Answers whole lines, as the agents send them, without looking at who asks for what."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(_CLAIM):
            number = data[len(_CLAIM) : data.index(b",", len(_CLAIM))]
            self._transport.write(b'[%b,"unstored"]\n' % number)
        elif data.startswith(b'["hello"'):
            self._transport.write(b'["welcome",1]\n')


def _peak_mb() -> float:
    # Not ru_maxrss, which starts at the size of the process that spawned this one.
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


class _Agents:
    """All simulated agents, on one event loop."""

    def __init__(self, count: int, keys: int, offered_per_s: float, where: dict[str, Any]) -> None:
        digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(keys)]
        names = [f"jit_train_step-{digest}" for digest in digests]
        self.claims = [
            f'["claims",[[{number},"{name}"]]]\n'.encode() for number, name in enumerate(names)
        ]
        self.publications = [
            f'["publish",{_PUBLISH + number},"{name}","{digest}",1000000,true,false]\n'.encode()
            for number, (name, digest) in enumerate(zip(names, digests, strict=True))
        ]
        self.published_at = [float("inf")] * keys  # by key
        self.latencies_s: list[float] = []
        self.waits = 0
        self.grants = 0
        self.due_by_themselves = offered_per_s == 0
        self.missing = count * keys
        self.all_resolved = asyncio.Event()
        self._count = count
        self._offered_per_s = offered_per_s
        self._where = where

    async def run(self) -> dict[str, Any]:
        agents = await self._connect()
        gc.collect()
        gc.freeze()
        gc.disable()
        started = time.perf_counter()
        cpu_s = time.process_time()
        async with asyncio.timeout(_LIMIT_S):
            if self.due_by_themselves:
                for agent in agents:
                    agent.due_now(started)
            else:
                await self._offer(agents, started)
            await self.all_resolved.wait()
        elapsed_s = time.perf_counter() - started
        result = {
            "claims_per_s": self._count * len(self.claims) / elapsed_s,
            "all_resolved_s": elapsed_s,
            "grants": self.grants,
            "waits": self.waits,
            "agents_cpu_s": time.process_time() - cpu_s,
        }
        if not self.due_by_themselves:
            cuts = statistics.quantiles(self.latencies_s, n=1000)
            result |= {"p50_ms": cuts[499] * 1e3, "p99_ms": cuts[989] * 1e3}
            result |= {"p99_9_ms": cuts[998] * 1e3, "max_ms": max(self.latencies_s) * 1e3}
        return result

    async def _connect(self) -> list[_Agent]:
        loop = asyncio.get_running_loop()
        agents: list[_Agent] = []
        for first in range(0, self._count, _CONNECT_AT_ONCE):
            members = range(first, min(first + _CONNECT_AT_ONCE, self._count))
            made = [
                loop.create_connection(
                    lambda member=member: _Agent(self, member, self._where["token"]),  # type: ignore[misc]
                    *self._where["address"],
                )
                for member in members
            ]
            agents += [agent for _, agent in await asyncio.gather(*made)]
        await asyncio.gather(*(agent.welcome for agent in agents))
        return agents

    async def _offer(self, agents: list[_Agent], started: float) -> None:
        sent, total = 0, self.missing
        while sent < total:
            due = min(total, int((time.perf_counter() - started) * self._offered_per_s) + 1)
            for number in range(sent, due):
                agents[number % self._count].due_now(started + number / self._offered_per_s)
            sent = due
            await asyncio.sleep(_TICK_S)


class _Agent(asyncio.Protocol):
    """One claim at a time, in order."""

    def __init__(self, shared: _Agents, member: int, token: str) -> None:
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._shared = shared
        self._hello = json.dumps(["hello", token, member]).encode() + b"\n"
        self._rest = b""
        self._taken = 0
        self._due: deque[float] = deque()  # the first one is open
        self._next = 0
        self._sent_at = 0.0

    def due_now(self, due_at: float) -> None:
        self._due.append(due_at)
        if len(self._due) == 1:
            self._claim()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._hello)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._shared.missing:
            print(f"an agent has lost the coordinator: {exc}", file=sys.stderr, flush=True)
            os._exit(1)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if answer[0] == "welcome":
                self.welcome.set_result(None)
            elif answer[0] != "taken":
                self._answered(*answer)
                self._taken += 1
                if self._taken % TELL_EVERY == 0:
                    self._transport.write(b'["taken",%d]\n' % self._taken)

    def _claim(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._shared.claims[self._next])

    def _answered(self, request: int, what: str, *rest: Any) -> None:
        shared = self._shared
        if what == "published":
            shared.published_at[request - _PUBLISH] = time.perf_counter()
            self._go_on()
            return
        if self._sent_at < shared.published_at[request] and what == "found":
            shared.waits += 1
        else:
            shared.latencies_s.append(time.perf_counter() - self._due[0])
        if what == "granted":
            shared.grants += 1
            self._transport.write(shared.publications[request])
        else:
            self._go_on()

    def _go_on(self) -> None:
        shared = self._shared
        self._due.popleft()
        self._next += 1
        shared.missing -= 1
        if not shared.missing:
            shared.all_resolved.set()
        elif shared.due_by_themselves and self._next < len(shared.claims):
            self._due.append(time.perf_counter())
        if self._due:
            self._claim()


if __name__ == "__main__":
    main()
