"""A proxy in front of a GCS emulator: a wide-area network, a request log, and faults.

It runs as a process of its own, so a slow test does not slow it: `gcs_proxy(emulator.url)`.
Every request waits one round trip, the first one of a connection two (the handshake); bodies
share a link of the given bandwidth in each direction. DELETE and rewrites with `ifGenerationMatch`
are checked here, because the emulator does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

_CONTROL = "/__proxy__"
_CHUNK_SIZE = 1 << 18
_TRICKLE_BYTES_PER_S = 1000
_TRICKLE_PIECE = 50  # so that it is never silent for long
_HOP_HEADERS = {"host", "connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Fault:
    """What to do to the next `times` requests that match.

    kind: "status" answers `status` and forwards nothing, with a `Retry-After` where that is
    given; "commit_then_status" forwards, throws the answer away and answers `status`; "reset"
    cuts the connection before forwarding, "reset_in_upload" when half of the request's body has
    gone to the store, "short_body" half-way through the answer's body, and "reset_after" when
    the store has answered, before any of it is passed on. "stall" never answers; "trickle" passes
    the answer's body on at 1 KB/s, "trickle_upload" reads the request's at that rate.
    "flipped_byte" changes the last byte of the answer's body. `lists` picks listings, or leaves
    them out.
    """

    kind: str
    method: str = "GET"
    object_contains: str = ""
    status: int = 503
    times: int = 1
    retry_after: str = ""
    lists: bool | None = None

    def matches(self, method: str, name: str, *, lists: bool) -> bool:
        """Whether it is meant for this request."""
        wanted = self.lists in (None, lists)
        return wanted and self.method == method and self.object_contains in name


@dataclass(frozen=True)
class ProxiedRequest:
    """One request as the proxy saw it. `status` is 0 where no answer was sent to its end."""

    method: str
    object_name: str
    query: str
    status: int
    request_bytes: int
    response_bytes: int

    @property
    def billed_as(self) -> str:
        """Its class on Google's price list: `A` (writes, lists), `B` (reads), or `free` (deletes).

        https://cloud.google.com/storage/pricing#operations-by-class
        """
        if self.method == "DELETE":
            return "free"
        lists = _lists(self.object_name, self.query)
        return "B" if self.method in ("GET", "HEAD") and not lists else "A"


@dataclass(frozen=True)
class GcsProxy:
    """A running proxy; `url` is what `STORAGE_EMULATOR_HOST` wants."""

    url: str

    def requests(
        self, method: str | None = None, object_contains: str = ""
    ) -> list[ProxiedRequest]:
        """The requests since the last `reset`, in order of their end."""
        logged = [ProxiedRequest(**item) for item in self._control("GET", "requests")]
        return [
            request
            for request in logged
            if method in (None, request.method) and object_contains in request.object_name
        ]

    def inject(self, *faults: Fault) -> None:
        """Add faults; of those that match a request the first is taken."""
        self._control("POST", "faults", [asdict(fault) for fault in faults])

    def faults_left(self) -> int:
        """How many injected faults have not all been taken yet."""
        return len(self._control("GET", "faults"))

    def reset(self) -> None:
        """Forget the logged requests and the faults that are left."""
        self._control("POST", "reset")

    def _control(self, method: str, action: str, content: object = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}{_CONTROL}/{action}", method=method, data=json.dumps(content).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


def requests_of_entries(proxy: GcsProxy) -> Counter[tuple[str, str, int]]:
    """The requests for entries by method, end of the name, and status."""
    return Counter(
        (request.method, request.object_name.rpartition("-")[2], request.status)
        for request in proxy.requests(object_contains="entries/")
    )


@contextlib.contextmanager
def gcs_proxy(
    target: str, *, rtt_ms: float = 0.0, bandwidth_mb_s: float | None = None
) -> Iterator[GcsProxy]:
    """Run a proxy to `target` (an emulator's URL) as long as the context lasts.

    `bandwidth_mb_s` in 10^6 bytes a second, None for no bound.
    """
    command = [sys.executable, "-m", "tests.support.gcs_proxy", target, "--rtt-ms", str(rtt_ms)]
    if bandwidth_mb_s is not None:
        command += ["--bandwidth-mb-s", str(bandwidth_mb_s)]
    root = Path(__file__).resolve().parents[2]
    # It ends when its standard input does, so also when this process is killed.
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the proxy ended with {process.wait()}")
            yield GcsProxy(url)
        finally:
            process.terminate()


class _Link:
    """One direction of a network connection that all requests share."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def carry(self, size_bytes: int) -> None:
        if self._bytes_per_s is None:
            return
        self._free_at = max(self._free_at, time.monotonic()) + size_bytes / self._bytes_per_s
        ahead = self._free_at - time.monotonic()
        if ahead > 0.001:  # finer than the event loop sleeps
            await asyncio.sleep(ahead)


class _Proxy:
    def __init__(self, target: str, rtt_s: float, bytes_per_s: float | None) -> None:
        self._target = target.rstrip("/")
        self._rtt_s = rtt_s
        self._up, self._down = _Link(bytes_per_s), _Link(bytes_per_s)
        self._known_connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._log: list[ProxiedRequest] = []
        self._faults: list[Fault] = []
        self._deletes = asyncio.Lock()
        self._session: aiohttp.ClientSession

    async def sessions(self, _: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            self._session = session
            yield

    async def control(self, request: web.Request) -> web.Response:
        action = request.match_info["action"]
        if action == "requests":
            return web.json_response([asdict(logged) for logged in self._log])
        if action == "faults" and request.method == "GET":
            return web.json_response([asdict(fault) for fault in self._faults])
        if action == "faults":
            self._faults += [Fault(**item) for item in await request.json()]
        elif action == "reset":
            self._log = []  # not cleared: what is under way is logged with its own time
            self._faults.clear()
        else:
            raise web.HTTPNotFound
        return web.json_response(None)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        log = self._log
        await self._wait_for_network(request)
        first = await request.content.readany()
        name = _object_name(request, first)
        exchange = _Exchange(request, first)
        try:
            return await self._answer(request, exchange, self._take_fault(request, name))
        except aiohttp.ClientConnectionResetError:  # the client has given up
            return web.Response(status=499)
        finally:
            log.append(
                ProxiedRequest(
                    method=request.method,
                    object_name=name,
                    query=request.query_string,
                    status=exchange.status,
                    request_bytes=exchange.request_bytes,
                    response_bytes=exchange.response_bytes,
                )
            )

    async def _wait_for_network(self, request: web.Request) -> None:
        round_trips = 1
        if request.transport not in self._known_connections:
            self._known_connections.add(request.transport)
            round_trips = 2
        if self._rtt_s:
            await asyncio.sleep(self._rtt_s * round_trips)

    def _take_fault(self, request: web.Request, name: str) -> Fault | None:
        lists = _lists(name, request.query_string)
        for index, fault in enumerate(self._faults):
            if fault.matches(request.method, name, lists=lists):
                if fault.times > 1:
                    self._faults[index] = replace(fault, times=fault.times - 1)
                else:
                    del self._faults[index]
                return fault
        return None

    async def _answer(
        self, request: web.Request, exchange: _Exchange, fault: Fault | None
    ) -> web.StreamResponse:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            async for chunk in exchange.body():
                await self._up.carry(len(chunk))
            exchange.status = fault.status
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else None
            return web.Response(status=fault.status, text="injected", headers=headers)
        if kind == "stall":
            await asyncio.Event().wait()
        if kind == "reset":
            _cut(request)
            return web.Response(status=500)
        guard = self._deletes if _is_checked_here(request) else contextlib.nullcontext()
        async with guard:
            if await self._is_stale(request):
                exchange.status = 412
                return web.Response(status=412, text="conditionNotMet")
            async with self._session.request(
                request.method,
                URL(self._target + request.raw_path, encoded=True),
                headers=_end_to_end(request.headers),
                data=self._upload(request, exchange, kind) if request.body_exists else None,
                allow_redirects=False,
            ) as answer:
                if fault and kind == "commit_then_status":
                    await answer.read()
                    exchange.status = fault.status
                    return web.Response(status=fault.status, text="injected")
                if kind == "reset_after":
                    await answer.read()
                    _cut(request)
                    return web.Response(status=500)
                return await self._pass_on(request, exchange, answer, kind)

    async def _pass_on(
        self,
        request: web.Request,
        exchange: _Exchange,
        answer: aiohttp.ClientResponse,
        kind: str,
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status)
        response.headers.extend(_end_to_end(answer.headers))
        location = response.headers.get("Location")  # of a resumable upload: comes here too
        if location is not None:
            own = f"{request.scheme}://{request.host}"
            response.headers["Location"] = location.replace(self._target, own)
        await response.prepare(request)
        async for chunk in answer.content.iter_chunked(_CHUNK_SIZE):
            await self._down.carry(len(chunk))
            if kind == "short_body":
                await response.write(chunk[: len(chunk) // 2])
                _cut(request)
                return response
            if kind == "flipped_byte" and answer.content.at_eof():
                chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
            for piece in _pieces(chunk, kind == "trickle"):
                await response.write(piece)
                if kind == "trickle":
                    await asyncio.sleep(len(piece) / _TRICKLE_BYTES_PER_S)
            exchange.response_bytes += len(chunk)
        await response.write_eof()
        exchange.status = answer.status
        return response

    async def _upload(
        self, request: web.Request, exchange: _Exchange, kind: str
    ) -> AsyncIterator[bytes]:
        async for chunk in exchange.body():
            await self._up.carry(len(chunk))
            if kind == "reset_in_upload":
                yield chunk[: len(chunk) // 2]
                _cut(request)
                raise aiohttp.ClientConnectionResetError("injected")
            for piece in _pieces(chunk, kind == "trickle_upload"):
                if request.transport is None:
                    raise aiohttp.ClientConnectionResetError("the client has given up")
                yield piece
                if kind == "trickle_upload":
                    await asyncio.sleep(len(piece) / _TRICKLE_BYTES_PER_S)

    async def _is_stale(self, request: web.Request) -> bool:
        expected = request.query.get("ifGenerationMatch")
        if expected is None or not _is_checked_here(request):
            return False
        path = request.raw_path.partition("?")[0].partition("/rewriteTo/")[0]
        url = URL(self._target + path, encoded=True)
        async with self._session.get(url) as answer:
            return answer.status == 200 and (await answer.json())["generation"] != expected


def _is_checked_here(request: web.Request) -> bool:
    return request.method == "DELETE" or "/rewriteTo/" in request.raw_path


class _Exchange:
    """A request's body, the start of which has been read, and what came of it."""

    def __init__(self, request: web.Request, first: bytes) -> None:
        self._request = request
        self._first = first
        self.status = 0
        self.request_bytes = 0
        self.response_bytes = 0

    async def body(self) -> AsyncIterator[bytes]:
        chunk = self._first
        while chunk:
            self.request_bytes += len(chunk)
            yield chunk
            chunk = await self._request.content.readany()


def _object_name(request: web.Request, first: bytes) -> str:
    """The object that a request is about; empty for a listing or a bucket."""
    _, found, quoted = request.raw_path.partition("?")[0].partition("/o/")
    if found:
        return urllib.parse.unquote(quoted)
    if "name" in request.query:
        return request.query["name"]
    # An upload names its object in a JSON part at the start of the body.
    name = re.search(rb'"name":\s*("(?:[^"\\]|\\.)*")', first)
    return str(json.loads(name[1])) if name and "/upload/" in request.path else ""


def _lists(name: str, query: str) -> bool:
    return not name and bool(re.search(r"\b(prefix|delimiter|maxResults)=", query))


def _pieces(chunk: bytes, small: bool) -> list[bytes]:
    """The chunk whole, or as it trickles."""
    size = _TRICKLE_PIECE if small else max(1, len(chunk))
    return [chunk[start : start + size] for start in range(0, len(chunk), size)]


def _end_to_end(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP_HEADERS]


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _serve(target: str, rtt_s: float, bytes_per_s: float | None) -> None:
    proxy = _Proxy(target, rtt_s, bytes_per_s)
    app = web.Application(client_max_size=1 << 40)
    app.cleanup_ctx.append(proxy.sessions)
    app.router.add_route("*", f"{_CONTROL}/{{action}}", proxy.control)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--bandwidth-mb-s", type=float)
    options = parser.parse_args(arguments)
    bandwidth = options.bandwidth_mb_s
    bytes_per_s = None if bandwidth is None else bandwidth * 1e6
    asyncio.run(_serve(options.target, options.rtt_ms / 1000, bytes_per_s))


if __name__ == "__main__":
    main()
