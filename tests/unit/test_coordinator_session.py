"""A link whose connections end, at each step: nothing is lost, said twice, or kept for ever."""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotstart.launcher.claims import Answer, Found, Granted
from hotstart.launcher.coordinator import Coordinator
from hotstart.launcher.coordinator_link import CoordinatorLink
from hotstart.launcher.coordinator_session import (
    KEEP_S,
    MOST_FRUITLESS,
    RECONNECT_S,
    TELL_EVERY,
    Session,
)
from hotstart.launcher.coordinator_wire import DEAD_AFTER_S, Malformed, Published
from tests.support.host_lab import until
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = pytest.mark.unit

KEY = "jit_step-0a"
D1, D2 = (hashlib.sha256(name).digest() for name in (b"1", b"2"))
LEASE = Granted(absent=False, replaces=None)
_WAIT_S = 10.0


class Agent:
    """A link that keeps what it is told, over a way that can be cut or straight."""

    def __init__(
        self,
        coordinator: Coordinator,
        member: int,
        proxy: TcpProxy | None = None,
        token: str | None = None,
        **how: Any,
    ) -> None:
        self.replies: queue.Queue[tuple[int, Answer | Published]] = queue.Queue()
        self.lost = threading.Semaphore(0)
        self.link = CoordinatorLink(
            coordinator.address if proxy is None else ("127.0.0.1", proxy.port),
            coordinator.token if token is None else token,
            member,
            lambda request, answer: self.replies.put((request, answer)),
            self.lost.release,
            **how,
        )

    def next(self) -> tuple[int, Answer | Published]:
        return self.replies.get(timeout=_WAIT_S)

    def settled(self) -> None:
        """Returns once the coordinator has taken all that was sent; nothing else was answered."""
        self.link.publish(0, "settled", D1, 0, in_node=False, in_store=True)
        assert self.next() == (0, Published(D1))

    def publish(self, request: int, key: str = KEY, digest: bytes = D1) -> None:
        self.link.publish(request, key, digest, 10, in_node=True, in_store=False)


class Scene:
    """A coordinator, an agent whose way to it can be cut, and one whose way can't."""

    def __init__(self, stack: contextlib.ExitStack, **how: Any) -> None:
        self.coordinator = Coordinator("127.0.0.1", **how)
        stack.callback(self.coordinator.close)
        self.proxy = stack.enter_context(
            tcp_proxy(f"http://127.0.0.1:{self.coordinator.address[1]}")
        )
        self._stack = stack
        self.far = self.connect(0, self.proxy)
        self.near = self.connect(1)

    def connect(self, member: int, proxy: TcpProxy | None = None, **how: Any) -> Agent:
        agent = Agent(self.coordinator, member, proxy, **how)
        self._stack.callback(agent.link.close)
        return agent

    def cut(self, *, links: int = 1, refuses: bool = False) -> None:
        assert until(lambda: self.proxy.connections == links)
        self.proxy.refuses = refuses
        assert self.proxy.cut() == links

    def has_begun(self, attempt: int) -> None:
        for agent in (self.far, self.near):
            agent.link.begin(attempt)
            agent.settled()


Make = Callable[..., Scene]


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:
        yield lambda **how: Scene(stack, **how)


# Cut at each step.


def test_cut_before_the_question_arrives_it_is_asked_again(make: Make) -> None:
    scene = make()
    lost_bytes = scene.proxy.lose("to_server")
    scene.far.link.claim(1, KEY)
    assert until(lambda: lost_bytes() > 0)
    scene.near.link.claim(2, KEY)
    assert scene.near.next() == (2, LEASE)
    scene.cut()
    scene.far.settled()  # it waits for its peer
    scene.near.publish(3)
    assert scene.near.next() == (3, Published(D1))
    assert scene.far.next() == (1, Found(D1, 10, (1,), False))


def test_cut_within_a_line_it_is_said_again_as_a_whole(make: Make) -> None:
    scene = make()
    lost_bytes = scene.proxy.lose("to_server", after_bytes=12)
    scene.far.link.claim(1, KEY)
    assert until(lambda: lost_bytes() > 0)
    scene.cut()
    assert scene.far.next() == (1, LEASE)


def test_cut_while_the_question_waits_its_answer_comes_after_it_is_back(make: Make) -> None:
    scene = make()
    scene.near.link.claim(1, KEY)
    assert scene.near.next() == (1, LEASE)
    scene.far.link.claim(2, KEY)
    scene.far.settled()
    scene.cut(refuses=True)
    scene.near.publish(3)
    assert scene.near.next() == (3, Published(D1))
    scene.proxy.refuses = False
    assert scene.far.next() == (2, Found(D1, 10, (1,), False))
    scene.far.settled()


def test_cut_before_the_grant_arrives_it_is_granted_once(make: Make) -> None:
    scene = make()
    lost_bytes = scene.proxy.lose("to_client")
    scene.far.link.claim(1, KEY)
    assert until(lambda: lost_bytes() > 0)
    scene.near.link.claim(2, KEY)
    scene.near.settled()  # it waits for its peer, which has the lease and doesn't know
    scene.cut()
    assert scene.far.next() == (1, LEASE)
    scene.far.publish(3)
    assert scene.far.next() == (3, Published(D1))
    assert scene.near.next() == (2, Found(D1, 10, (0,), False))
    scene.far.settled()


def test_cut_after_the_grant_the_lease_stays_and_who_waits_goes_on_waiting(make: Make) -> None:
    scene = make()
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    scene.near.link.claim(2, KEY)
    scene.cut(refuses=True)
    scene.near.settled()
    scene.far.publish(3)  # while it is away
    scene.proxy.refuses = False
    assert scene.far.next() == (3, Published(D1))
    assert scene.near.next() == (2, Found(D1, 10, (0,), False))


@pytest.mark.parametrize("way", ["to_server", "to_client"])
def test_cut_around_a_publication_it_counts_once(make: Make, way: str) -> None:
    scene = make()
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    lost_bytes = scene.proxy.lose(way)
    scene.far.publish(2)
    assert until(lambda: lost_bytes() > 0)
    scene.cut()
    assert scene.far.next() == (2, Published(D1))
    scene.far.settled()
    scene.near.link.claim(3, KEY)
    assert scene.near.next() == (3, Found(D1, 10, (0,), False))


def test_cut_around_a_release_it_does_not_end_a_later_lease(make: Make) -> None:
    scene = make()
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    lost_bytes = scene.proxy.lose("to_client")
    scene.far.link.release(KEY)
    scene.far.link.claim(2, KEY)  # and has it again
    assert until(lambda: lost_bytes() > 0)
    scene.cut()
    assert scene.far.next() == (2, LEASE)
    scene.near.link.claim(3, KEY)
    scene.near.settled()
    scene.far.publish(4)
    assert scene.near.next() == (3, Found(D1, 10, (0,), False))
    assert scene.far.next() == (4, Published(D1))
    scene.far.settled()


def test_cut_again_and_again_each_line_is_taken_once(make: Make) -> None:
    scene = make()
    count = 3 * TELL_EVERY
    for number in range(count):
        scene.far.link.claim(number, f"key-{number}")
        if number % 7 == 0:
            scene.proxy.cut()
    answers = sorted(scene.far.next()[0] for _ in range(count))
    assert answers == list(range(count))
    scene.far.settled()


def test_begin_while_away_voids_what_was_asked_before_it(make: Make) -> None:
    scene = make()
    scene.has_begun(1)
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    scene.near.link.claim(2, KEY)
    scene.cut(refuses=True)
    scene.far.link.begin(2)
    scene.proxy.refuses = False
    assert scene.near.next() == (2, LEASE)
    scene.far.settled()


def test_member_that_is_back_is_kept_for_good(make: Make) -> None:
    scene = make(keep_s=2.0)
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    scene.cut()
    scene.far.settled()
    hello = json.dumps(["hello", scene.coordinator.token, 2]).encode()
    with socket.create_connection(scene.coordinator.address, timeout=_WAIT_S) as brief:
        brief.sendall(hello + b'\n["claims",[[1,"other"]]]\n')
        with brief.makefile("rb") as lines:
            assert [json.loads(lines.readline()) for _ in range(2)][1] == [
                1,
                "granted",
                False,
                None,
            ]
    scene.near.link.claim(2, "other")
    assert scene.near.next() == (2, LEASE)  # so long has the other one been away, which is later
    scene.near.link.claim(3, KEY)
    scene.near.settled()
    scene.far.publish(4)
    assert scene.near.next() == (3, Found(D1, 10, (0,), False))


# Who does not come back.


def test_member_that_is_away_for_too_long_is_gone_and_refused(make: Make) -> None:
    scene = make(keep_s=0.05)
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    scene.near.link.claim(2, KEY)
    scene.near.settled()
    scene.cut(refuses=True)
    assert scene.near.next() == (2, LEASE)
    scene.proxy.refuses = False
    assert scene.far.lost.acquire(timeout=_WAIT_S)
    scene.far.publish(3)  # dropped
    scene.near.publish(4, digest=D2)
    assert scene.near.next() == (4, Published(D2))
    assert not scene.far.lost.acquire(blocking=False)
    assert scene.far.replies.empty()


def test_coordinator_out_of_reach_the_link_is_lost_once_when_its_time_is_over(make: Make) -> None:
    scene = make()
    waiting = scene.connect(2, scene.proxy, reconnect_s=0.3)
    scene.near.link.claim(1, KEY)
    assert scene.near.next() == (1, LEASE)
    waiting.link.claim(2, KEY)
    waiting.settled()
    scene.cut(links=2, refuses=True)
    assert not waiting.link.lost
    assert waiting.lost.acquire(timeout=_WAIT_S)
    assert waiting.link.lost
    waiting.link.close()
    assert not waiting.lost.acquire(blocking=False)
    assert waiting.replies.empty()


def test_coordinator_that_closes_is_not_waited_for(make: Make) -> None:
    scene = make()
    scene.coordinator.close()
    assert scene.far.lost.acquire(timeout=RECONNECT_S / 2)


def test_coordinator_that_was_started_again_lets_no_member_of_before_in(make: Make) -> None:
    scene = make()
    other = scene.connect(2, scene.proxy, reconnect_s=0.3)
    again = Coordinator("127.0.0.1")
    try:
        scene.proxy.target = again.address
        scene.cut(links=2)
        assert other.lost.acquire(timeout=_WAIT_S)
    finally:
        again.close()


def test_member_whose_place_is_taken_is_refused(make: Make) -> None:
    scene = make()
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    scene.cut(refuses=True)
    heir = scene.connect(0)
    heir.link.claim(2, KEY)
    assert heir.next() == (2, LEASE)
    scene.proxy.refuses = False
    assert scene.far.lost.acquire(timeout=_WAIT_S)
    scene.near.link.claim(3, KEY)
    scene.near.settled()
    heir.publish(4)
    assert scene.near.next() == (3, Found(D1, 10, (0,), False))


def test_member_of_an_attempt_that_others_have_left_comes_back_in_theirs_only(make: Make) -> None:
    scene = make()
    scene.has_begun(1)
    scene.far.link.claim(1, KEY)
    assert scene.far.next() == (1, LEASE)
    scene.cut(refuses=True)
    scene.near.link.begin(2)
    scene.near.link.claim(2, KEY)
    scene.near.settled()
    refused = resume(scene.coordinator, 0, 1, attempt=1)
    assert refused == ["refused", "attempt"]
    scene.far.link.begin(2)
    scene.proxy.refuses = False
    assert scene.near.next() == (2, LEASE)
    scene.far.settled()
    assert not scene.far.link.lost


@pytest.mark.parametrize(
    ("member", "session", "answer"),
    [(0, 9, ["refused", "over"]), (7, 1, ["refused", "over"])],
    ids=["session", "member"],
)
def test_session_that_is_not_there_is_refused(
    make: Make, member: int, session: int, answer: list[Any]
) -> None:
    scene = make()
    assert resume(scene.coordinator, member, session) == answer
    scene.far.settled()


def test_session_is_not_resumed_with_another_token_or_impossible_counts(make: Make) -> None:
    scene = make()
    assert resume(scene.coordinator, 0, 1, token="guess") is None
    assert resume(scene.coordinator, 0, 1, taken=1) is None
    assert resume(scene.coordinator, 0, 1, taken=-1) is None
    scene.far.settled()


def test_way_that_lets_in_and_carries_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        resumed = threading.Semaphore(0)

        def serve() -> None:
            answer = b'["welcome",1]\n'
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(answer)
                    answer = b'["resumed",0]\n'
                    resumed.release()

        thread = threading.Thread(target=serve)
        thread.start()
        lost = threading.Semaphore(0)
        link = CoordinatorLink(
            server.getsockname(), "token", 0, lambda *_: None, lost.release, timeout_s=_WAIT_S
        )
        assert lost.acquire(timeout=_WAIT_S)
        link.close()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(_WAIT_S)
    assert [resumed.acquire(blocking=False) for _ in range(MOST_FRUITLESS + 2)] == (
        [True] * (MOST_FRUITLESS + 1) + [False]
    )


def test_link_closed_while_away_calls_nobody(make: Make) -> None:
    scene = make()
    scene.cut(refuses=True)
    scene.far.link.close()
    assert not scene.far.lost.acquire(blocking=False)
    threads = [thread.name for thread in threading.enumerate()]
    assert threads.count("coordinator-link-read") == 1  # the other agent's


def test_coordinator_keeps_a_member_for_longer_than_it_may_take_to_come_back() -> None:
    assert KEEP_S > DEAD_AFTER_S + RECONNECT_S


# One end.


def test_session_sends_what_the_other_end_has_not_taken() -> None:
    session = Session()
    for line in (b"1", b"2", b"3"):
        session.add(line)
    assert session.send() == [b"1", b"2", b"3"]
    assert not session.has_unsent
    session.told(1)
    session.add(b"4")
    session.resume(2)
    assert session.send() == [b"3", b"4"]
    assert session.taken_there == 2


def test_session_tells_what_it_has_taken_every_so_often() -> None:
    session = Session()
    told = []
    for _ in range(2 * TELL_EVERY):
        session.take()
        told.append(session.tell())
    assert [count for count in told if count is not None] == [TELL_EVERY, 2 * TELL_EVERY]


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_session_other_end_can_not_have_taken_less_or_more(count: int) -> None:
    session = Session()
    session.add(b"1")
    session.add(b"2")
    session.send()
    session.told(1)
    with pytest.raises(Malformed):
        session.told(count)


def resume(
    coordinator: Coordinator, member: int, session: int, *, token: str | None = None, **how: int
) -> list[Any] | None:
    """What a connection is told that would go on with a session; None where it is closed."""
    message = [
        "resume", token or coordinator.token, member, session,
        how.get("attempt", 0), how.get("taken", 0),
    ]  # fmt: skip
    with socket.create_connection(coordinator.address, timeout=_WAIT_S) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        with connection.makefile("rb") as lines:
            line = lines.readline()
    return json.loads(line) if line else None
