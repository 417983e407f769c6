"""The log of requests: in order, told of, and never in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hotstart.cache.requests import Request, RequestLog

pytestmark = pytest.mark.unit

REQUEST = Request(
    key="jit_step-" + "0" * 64,
    module="jit_step",
    outcome="hit",
    digest=b"d",
    size_bytes=10,
    options=b"options",
    device_ids=(0,),
    host_callbacks=False,
    compile_s=1.5,
)


def test_log_keeps_the_order_and_tells_of_each():
    told: list[Request] = []
    log = RequestLog(told.append)
    other = replace(REQUEST, module="jit_other")

    log.add(REQUEST)
    log.add(other)
    log.add(REQUEST)

    assert log.all() == (REQUEST, other, REQUEST) == tuple(told)


def test_log_whose_listener_fails_goes_on(caplog):
    def broken(request: Request) -> None:
        raise OSError("the agent is gone")

    log = RequestLog(broken)
    log.add(REQUEST)

    assert log.all() == (REQUEST,)
    assert caplog.messages == ["telling of the request for jit_step failed"]


def test_log_keeps_one_copy_of_equal_options():
    log = RequestLog()
    first, second = bytes(bytearray(b"options")), bytes(bytearray(b"options"))

    assert first is not second
    assert log.intern(first) is log.intern(second) is first
