"""The coordinator's server and the agents' links, over real sockets on loopback."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotstart.launcher.claims import STORE, Absent, Answer, Found, Granted, Held, Unstored
from hotstart.launcher.coordinator import Coordinator
from hotstart.launcher.coordinator_link import CoordinatorLink
from hotstart.launcher.coordinator_wire import (
    Ask,
    Lines,
    Malformed,
    Published,
    answer_from_line,
    answer_to_line,
    ask_from_json,
    ask_to_json,
)

pytestmark = pytest.mark.unit

KEY = "jit_step-0a"
D1, D2 = (hashlib.sha256(name).digest() for name in (b"1", b"2"))
LEASE = Granted(absent=False, replaces=None)
_WAIT_S = 10.0


class Agent:
    """A link that keeps what it is told."""

    def __init__(self, coordinator: Coordinator, member: int, token: str | None = None) -> None:
        self.replies: queue.Queue[tuple[int, Answer | Published]] = queue.Queue()
        self.lost = threading.Semaphore(0)
        self.link = CoordinatorLink(
            coordinator.address,
            coordinator.token if token is None else token,
            member,
            lambda request, answer: self.replies.put((request, answer)),
            self.lost.release,
        )

    def next(self) -> tuple[int, Answer | Published]:
        return self.replies.get(timeout=_WAIT_S)

    def settled(self) -> None:
        """Returns once the coordinator has taken all that was sent; nothing else was answered."""
        self.link.publish(0, "settled", D1, 0, in_node=False, in_store=True)
        assert self.next() == (0, Published(D1))


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator("127.0.0.1")
    yield coordinator
    coordinator.close()


@pytest.fixture
def connect(coordinator: Coordinator) -> Iterator[Callable[[int], Agent]]:
    agents: list[Agent] = []

    def connect(member: int) -> Agent:
        agents.append(Agent(coordinator, member))
        return agents[-1]

    yield connect
    for agent in agents:
        agent.link.close()


Connect = Callable[[int], Agent]


@pytest.fixture
def raw(coordinator: Coordinator) -> Iterator[socket.socket]:
    with socket.create_connection(coordinator.address, timeout=_WAIT_S) as connection:
        yield connection


def hello(token: str, member: Any) -> bytes:
    return json.dumps(["hello", token, member]).encode() + b"\n"


def read_to_end(connection: socket.socket) -> bytes:
    """What still comes; a reset is an end too."""
    data = b""
    try:
        while chunk := connection.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        pass
    return data


# Claims


def test_link_two_agents_resolve_a_key_once(connect: Connect) -> None:
    first, second = connect(0), connect(1)
    first.link.claim(11, KEY)
    assert first.next() == (11, LEASE)
    second.link.claim(21, KEY)
    second.settled()
    first.link.publish(12, KEY, D1, 10, in_node=True, in_store=False)
    assert first.next() == (12, Published(D1))
    assert second.next() == (21, Found(D1, 10, (0,), False))
    first.link.stored(KEY, D1)
    first.settled()
    second.link.publish(22, KEY, D2, 10, in_node=True, in_store=False)
    assert second.next() == (22, Published(D1))
    second.link.claim(23, KEY, failed=[0])
    assert second.next() == (23, Found(D1, 10, (), True))
    second.link.claim(24, KEY, failed=[0, STORE], failed_digest=D1)
    assert second.next() == (24, Granted(absent=False, replaces=D1))


def test_link_absent_and_unstored_free_who_waits(connect: Connect) -> None:
    first, second = connect(0), connect(1)
    first.link.claim(1, KEY)
    assert first.next() == (1, LEASE)
    second.link.claim(2, KEY, may_compile=False)
    second.link.claim(3, KEY)
    second.settled()
    first.link.absent(KEY)
    assert second.next() == (2, Absent())
    first.link.unstored(KEY)
    assert second.next() == (3, Unstored())


def test_link_release_and_begin_grant_the_next(connect: Connect) -> None:
    first, second, third = (connect(member) for member in range(3))
    first.link.begin(1)
    first.link.claim(5, KEY)
    assert first.next() == (5, LEASE)
    for waiter in (second, third):
        waiter.link.begin(1)
        waiter.link.claim(5, KEY)
        waiter.settled()
    first.link.release(KEY)
    assert second.next() == (5, LEASE)
    second.link.begin(2)
    assert third.next() == (5, LEASE)


def test_link_claim_with_an_entry_publishes_it(connect: Connect) -> None:
    agent = connect(4)
    agent.link.claim(1, KEY, have=Held(D1, 10))
    assert agent.next() == (1, Found(D1, 10, (4,), False))


def test_link_claim_many_answers_each(connect: Connect) -> None:
    agent = connect(0)
    agent.link.claim_many(Ask(number, f"key-{number}") for number in range(5000))
    assert [agent.next() for _ in range(5000)] == [(number, LEASE) for number in range(5000)]


def test_link_requests_of_many_threads_are_each_answered_once(connect: Connect) -> None:
    agent = connect(0)
    numbers = itertools.count()
    threads = [
        threading.Thread(
            target=lambda: [agent.link.claim(n, f"key-{n}") for n in itertools.islice(numbers, 500)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(agent.next()[0] for _ in range(2000)) == list(range(2000))
    agent.settled()


def test_link_reply_that_raises_does_not_stop_the_next(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    taken: queue.Queue[int] = queue.Queue()

    def take(request: int, answer: Answer | Published) -> None:
        taken.put(request)
        if request == 1:
            raise KeyError(request)

    link = CoordinatorLink(coordinator.address, coordinator.token, 0, take, lambda: None)
    with caplog.at_level(logging.CRITICAL):
        link.claim(1, "a")
        link.claim(2, "b")
        assert [taken.get(timeout=_WAIT_S) for _ in range(2)] == [1, 2]
    link.close()


# Ends


def test_link_closed_passes_its_lease_on_and_calls_nobody(connect: Connect) -> None:
    first, second = connect(0), connect(1)
    first.link.claim(1, KEY)
    assert first.next() == (1, LEASE)
    second.link.claim(2, KEY)
    second.settled()
    first.link.close()
    assert second.next() == (2, LEASE)
    assert not first.lost.acquire(blocking=False)


def test_link_close_sends_what_was_queued(connect: Connect) -> None:
    first, second = connect(0), connect(1)
    first.link.publish(1, KEY, D1, 10, in_node=False, in_store=True)
    first.link.close()
    first.link.close()
    for number in range(1000):  # bounded: the end of `first` is noticed on another connection
        second.link.claim(number, KEY, may_compile=False)
        answer = second.next()[1]
        if answer == Found(D1, 10, (), True):
            return
        second.link.release(KEY)
    pytest.fail("the publication never arrived")


def test_link_process_killed_passes_its_lease_on_when_its_time_is_over() -> None:
    coordinator = Coordinator("127.0.0.1", keep_s=0.1)
    script = (
        "import sys, time\n"
        "from hotstart.launcher.coordinator_link import CoordinatorLink\n"
        "say = lambda *answer: print(answer, flush=True)\n"
        "address = ('127.0.0.1', int(sys.argv[1]))\n"
        "link = CoordinatorLink(address, sys.stdin.readline().strip(), 0, say, say)\n"
        f"link.claim(1, {KEY!r})\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(coordinator.address[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(coordinator.token + "\n")
        child.stdin.flush()
        assert "Granted" in child.stdout.readline()
        waiter = Agent(coordinator, 1)
        waiter.link.claim(2, KEY)
        waiter.settled()
        child.send_signal(signal.SIGKILL)
        assert waiter.next() == (2, LEASE)
        waiter.link.close()
    coordinator.close()


def test_link_server_closed_is_lost_once(coordinator: Coordinator, connect: Connect) -> None:
    agent = connect(0)
    agent.link.claim(1, KEY)
    assert agent.next() == (1, LEASE)
    assert not agent.link.lost
    coordinator.close()
    assert agent.lost.acquire(timeout=_WAIT_S)
    assert agent.link.lost
    agent.link.claim(2, KEY)
    agent.link.close()
    assert not agent.lost.acquire(blocking=False)
    assert agent.replies.empty()


def test_link_closed_by_its_own_callback_ends(coordinator: Coordinator) -> None:
    closed = threading.Event()

    def close() -> None:
        link.close()
        closed.set()

    link = CoordinatorLink(coordinator.address, coordinator.token, 0, lambda *_: None, close)
    coordinator.close()
    assert closed.wait(_WAIT_S)


def test_member_that_connects_again_replaces_its_old_link(connect: Connect) -> None:
    first, waiter = connect(0), connect(1)
    first.link.claim(1, KEY)
    assert first.next() == (1, LEASE)
    waiter.link.claim(2, KEY)
    waiter.settled()
    again = connect(0)
    assert waiter.next() == (2, LEASE)
    assert first.lost.acquire(timeout=_WAIT_S)
    again.link.claim(3, "jit_other-0b")
    assert again.next() == (3, LEASE)


def test_coordinator_close_frees_its_port_and_thread() -> None:
    coordinator = Coordinator("127.0.0.1")
    coordinator.close()
    coordinator.close()
    assert "hotstart-coordinator" not in [thread.name for thread in threading.enumerate()]
    socket.create_server(coordinator.address).close()


# Who may come in


def test_link_wrong_token_is_an_os_error_that_keeps_the_token(coordinator: Coordinator) -> None:
    with pytest.raises(ConnectionError, match=r"the coordinator at 127\.0\.0\.1:\d+") as caught:
        Agent(coordinator, 0, token="secret-guess")
    assert "secret-guess" not in str(caught.value)


def test_link_nobody_listens_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    with pytest.raises(ConnectionError, match="cannot connect to the coordinator"):
        CoordinatorLink(address, "token", 0, lambda *_: None, lambda: None)


def test_link_server_that_says_nothing_times_out() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(ConnectionError, match="timed out"),
    ):
        CoordinatorLink(
            mute.getsockname(), "token", 0, lambda *_: None, lambda: None, timeout_s=0.1
        )


def test_link_server_that_talks_nonsense_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        lost = threading.Semaphore(0)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b'["welcome",1]\n[1,"found",7]\n')
                read_to_end(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        link = CoordinatorLink(
            server.getsockname(), "token", 0, lambda *_: None, lost.release, timeout_s=_WAIT_S
        )
        assert lost.acquire(timeout=_WAIT_S)
        link.close()
        thread.join(_WAIT_S)


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"\n",
        b"[" * 4000 + b"\n",
        b'["claims",[[1,"a"]]]\n',
        hello("wrong", 0),
        hello("\ud800", 0),
        b'{"hello":1}\n',
        b"x" * 5000,
    ],
    ids=["http", "empty", "deep", "claims", "wrong", "surrogate", "object", "long"],
)
def test_connection_without_the_token_is_closed(
    raw: socket.socket, connect: Connect, line: bytes
) -> None:
    raw.sendall(line)
    assert read_to_end(raw) == b""
    connect(0).settled()


@pytest.mark.parametrize("member", [-1, "0", None, 1.5])
def test_connection_of_no_member_is_closed(
    coordinator: Coordinator, raw: socket.socket, member: object
) -> None:
    raw.sendall(hello(coordinator.token, member))
    assert read_to_end(raw) == b""


def test_connection_that_says_nothing_is_closed() -> None:
    coordinator = Coordinator("127.0.0.1", hello_timeout_s=0.05)
    with socket.create_connection(coordinator.address, timeout=_WAIT_S) as silent:
        assert read_to_end(silent) == b""
    coordinator.close()


MALFORMED: list[Any] = [
    "text",
    [],
    ["nonsense"],
    ["claims", 3],
    ["claims", [[1]]],
    ["claims", [["1", KEY]]],
    ["claims", [[1, KEY, {"have": "00"}]]],
    ["claims", [[1, KEY, {"have": ["zz", 1]}]]],
    ["claims", [[1, KEY, {"failed": 3}]]],
    ["claims", [[1, KEY, {"failed": [{}]}]]],
    ["claims", [[1, KEY, {"failed_digest": 7}]]],
    ["publish", 1, KEY, "zz", 10, True, True],
    ["publish", 1, KEY, "00", 10, 1, True],
    ["stored", KEY, [1]],
    ["begin", "1"],
]


@pytest.mark.parametrize("message", MALFORMED, ids=json.dumps)
def test_malformed_message_closes_that_connection_only(
    coordinator: Coordinator, raw: socket.socket, connect: Connect, message: object
) -> None:
    raw.sendall(hello(coordinator.token, 0))
    assert raw.recv(1 << 16) == b'["welcome",1]\n'
    raw.sendall(b'["claims",[[1,"held"]]]\n')
    assert raw.recv(1 << 16) == b'[1,"granted",false,null]\n'
    waiter = connect(1)
    waiter.link.claim(2, "held")
    waiter.settled()
    raw.sendall(json.dumps(message).encode() + b"\n")
    assert read_to_end(raw) == b""
    assert waiter.next() == (2, LEASE)


def test_messages_of_one_read_are_answered_in_one_write(
    coordinator: Coordinator, raw: socket.socket
) -> None:
    raw.sendall(hello(coordinator.token, 0))
    assert raw.recv(1 << 16) == b'["welcome",1]\n'
    raw.sendall(
        b'["claims",[[1,"a"],[2,"b",{}]]]\n'
        b'["publish",3,"a","00",10,true,false]\n'
        b'["claims",[[4,"a"]]]\n'
    )
    assert raw.recv(1 << 16) == (
        b'[1,"granted",false,null]\n[2,"granted",false,null]\n'
        b'[3,"published","00"]\n[4,"found","00",10,[0],false]\n'
    )


# The wire


@pytest.mark.parametrize(
    "answer",
    [
        Found(D1, 10, (3, 1), True),
        Found(D1, 0, (), True),
        Found(D1, 1 << 40, (0,), False),
        Granted(False, None),
        Granted(True, D2),
        Absent(),
        Unstored(),
        Published(D1),
    ],
    ids=repr,
)
def test_answer_survives_the_wire(answer: Answer | Published) -> None:
    line = answer_to_line(7, answer)
    assert line.count(b"\n") == 1
    assert answer_from_line(line) == (7, answer)


@pytest.mark.parametrize(
    "ask",
    [
        Ask(1, KEY),
        Ask(2, 'odd "key"\n\N{SNOWMAN}', may_compile=False),
        Ask(3, KEY, have=Held(D1, 10)),
        Ask(4, KEY, failed=(STORE, 2), failed_digest=D2),
    ],
    ids=repr,
)
def test_ask_survives_the_wire(ask: Ask) -> None:
    assert ask_from_json(json.loads(json.dumps(ask_to_json(ask)))) == ask


@pytest.mark.parametrize(
    "reads",
    [[b"ab\nc\n"], [b"a", b"b", b"\nc", b"\n"], [b"ab\n", b"c\nd"], [b"ab", b"\nc\n", b""]],
    ids=repr,
)
def test_lines_are_cut_the_same_however_they_are_read(reads: list[bytes]) -> None:
    lines = Lines(3)
    assert [line for data in reads for line in lines.feed(data)] == [b"ab", b"c"]


def test_lines_longer_than_allowed_are_refused() -> None:
    lines = Lines(3)
    assert lines.feed(b"abc") == []
    with pytest.raises(Malformed):
        lines.feed(b"d")
