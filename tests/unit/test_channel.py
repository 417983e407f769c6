"""Messages between a worker and its agent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest

from hotstart.launcher.channel import Channel

pytestmark = pytest.mark.unit


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


def test_channel_messages_arrive_in_order(ends: Ends) -> None:
    sender, receiver = map(Channel, ends)
    for number in range(3):
        sender.send({"number": number, "text": "line\nend \N{SNOWMAN}"})
    sender.close()
    assert list(receiver) == [
        {"number": number, "text": "line\nend \N{SNOWMAN}"} for number in range(3)
    ]


def test_channel_messages_of_many_threads_stay_whole(ends: Ends) -> None:
    sender, receiver = map(Channel, ends)
    text = "x" * 5000

    def send(thread: int) -> None:
        for number in range(50):
            sender.send({"thread": thread, "number": number, "text": text})

    threads = [Thread(target=send, args=(thread,)) for thread in range(4)]
    received: list[dict[str, object]] = []
    reader = Thread(target=lambda: received.extend(receiver))
    reader.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sender.close()
    reader.join()
    assert len(received) == 200
    for thread in range(4):
        numbers = [m["number"] for m in received if m["thread"] == thread]
        assert numbers == list(range(50))


def test_channel_broken_lines_are_left_out(ends: Ends) -> None:
    ours, theirs = ends
    ours.sendall(b'{"a": 1}\nnot json\n[1, 2]\n\xff\xfe\n{"b": 2}\n{"cut off": ')
    ours.close()
    assert list(Channel(theirs)) == [{"a": 1}, {"b": 2}]


def test_channel_send_to_a_peer_that_has_gone_is_dropped(ends: Ends) -> None:
    ours, theirs = ends
    theirs.close()
    channel = Channel(ours)
    channel.send({"a": 1})
    channel.send({"a": 2})


def test_channel_close_ends_an_iteration_that_waits(ends: Ends) -> None:
    channel = Channel(ends[0])
    received: list[dict[str, object]] = []
    reader = Thread(target=lambda: received.extend(channel))
    reader.start()
    channel.close()
    reader.join(5)
    assert not reader.is_alive()
    assert received == []
    channel.close()
    channel.send({"too": "late"})
