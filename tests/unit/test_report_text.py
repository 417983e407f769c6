from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from hotstart.launcher.report import HOST_COUNTS, render_text

pytestmark = pytest.mark.unit


def worker(index: int, *, hits: int, compiled: int, first_step: float | None, **cache) -> dict:
    return {
        "process_index": index,
        "host": "host-a",
        "phases": {
            "process_start": 0.12,
            "import_jax": 1.01,
            "cache_enabled": 1.2,
            "distributed": 1.9,
            "user_code": 2.0,
            "first_compile": 3.5,
            "first_step": first_step,
        },
        "cache": {
            "requests": hits + compiled,
            "hits": hits,
            "compiled": compiled,
            "waits": 0,
            "errors": 0,
            "unsigned": 0,
            "bad_signature": 0,
            "read_bytes": 1_234_567 * hits,
            "written_bytes": 345_678_901 * compiled,
            "compile_s": 112.5 * compiled,
            "saved_s": 112.5 * hits,
            "retries": 0,
            "retry_s": 0.0,
            "outages": 0,
            "compiled_before_enable": 0,
            "compiled_before_enable_names": [],
            **cache,
        },
        "last_step": 3,
        "warnings": [],
    }


def attempt(
    number: int,
    outcome: str | None,
    reason: str | None,
    workers: list[dict],
    hosts: Sequence[dict] = (),
) -> dict:
    steps = [w["phases"]["first_step"] for w in workers]
    return {
        "attempt": number,
        "outcome": outcome,
        "reason": reason,
        "first_worker": None,
        "started_at": None,
        "seconds_to_first_step": None if None in steps or not steps else max(steps),
        "workers": workers,
        "hosts": hosts,
    }


def report(*attempts: dict) -> dict:
    return {
        "schema": 1,
        "run": "lm-1",
        "state": "done",
        "exit_code": 0,
        "reason": None,
        "launched_at": None,
        "cache": {"location": "/c", "source": "[JOB.yaml]", "mode": "read-write"},
        "attempts": list(attempts),
    }


def text_of(data: dict, width: int) -> list[str]:
    out = io.StringIO()
    render_text(data, Console(file=out, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


COLD = attempt(
    1,
    "failed",
    "process 1 on host-a was killed by SIGKILL",
    [
        worker(0, hits=0, compiled=5, first_step=14.2),
        worker(1, hits=0, compiled=5, first_step=14.1),
    ],
)
WARM = attempt(
    2,
    "done",
    "all 2 workers exited with code 0",
    [worker(0, hits=5, compiled=0, first_step=3.9), worker(1, hits=5, compiled=0, first_step=3.8)],
)


def test_report_text_at_80_columns_is_two_tables_an_attempt():
    assert text_of(report(COLD, WARM), 80) == [
        "run lm-1: done (exit code 0), 2 attempts, cache /c (read-write, set by",
        "[JOB.yaml])",
        "",
        "attempt 1: failed: process 1 on host-a was killed by SIGKILL",
        " proc start  jax cache dist code compile  step",
        "    0  0.12 1.01  1.20 1.90 2.00    3.50 14.20",
        "    1  0.12 1.01  1.20 1.90 2.00    3.50 14.10",
        " proc asked hit compiled waited read written spent saved retries",
        "    0     5   0        5      0  0 B  1.7 GB 562.5  0.00       0",
        "    1     5   0        5      0  0 B  1.7 GB 562.5  0.00       0",
        "",
        "attempt 2: done: all 2 workers exited with code 0",
        " proc start  jax cache dist code compile step",
        "    0  0.12 1.01  1.20 1.90 2.00    3.50 3.90",
        "    1  0.12 1.01  1.20 1.90 2.00    3.50 3.80",
        " proc asked hit compiled waited   read written spent saved retries",
        "    0     5   5        0      0 6.2 MB     0 B  0.00 562.5       0",
        "    1     5   5        0      0 6.2 MB     0 B  0.00 562.5       0",
        "",
        "start to step: seconds since it was decided to start the attempt;",
        "spent, saved: seconds of compilation",
        "seconds to first step: attempt 1 cold 14.2 s -> attempt 2 warm 3.9 s",
    ]


def test_report_text_at_120_columns_is_one_table_an_attempt():
    assert text_of(report(WARM), 120)[2:6] == [
        "attempt 2: done: all 2 workers exited with code 0",
        " proc start  jax cache dist code compile step"
        " asked hit compiled waited   read written spent saved retries",
        "    0  0.12 1.01  1.20 1.90 2.00    3.50 3.90"
        "     5   5        0      0 6.2 MB     0 B  0.00 562.5       0",
        "    1  0.12 1.01  1.20 1.90 2.00    3.50 3.80"
        "     5   5        0      0 6.2 MB     0 B  0.00 562.5       0",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_report_text_never_cuts_or_exceeds_the_width(width):
    lines = text_of(report(COLD, WARM), width)

    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]


def test_report_text_last_line_compares_the_attempts():
    mixed = attempt(3, "failed", "x", [worker(0, hits=2, compiled=1, first_step=None)])
    unheard = attempt(4, None, None, [])

    assert text_of(report(COLD, WARM, mixed, unheard), 200)[-1] == (
        "seconds to first step: attempt 1 cold 14.2 s -> attempt 2 warm 3.9 s -> "
        "attempt 3 partly warm no step -> attempt 4 no step"
    )


@pytest.mark.parametrize(
    ("counts", "warmth"),
    [
        ([(0, 6), (6, 0)], "cold"),
        ([(3, 3), (3, 3)], "cold"),
        ([(0, 6), (0, 6)], "cold"),
        ([(4, 2), (6, 0)], "partly warm"),
        ([(5, 1), (6, 0), (6, 0), (6, 0)], "partly warm"),
        ([(6, 0), (6, 0)], "warm"),
    ],
    ids=[
        "one_compiles_all",
        "each_a_half",
        "each_for_itself",
        "two_new",
        "one_new_of_4",
        "all_hit",
    ],
)
def test_report_text_what_a_peer_has_just_compiled_makes_no_start_warm(counts, warmth):
    workers = [
        worker(index, hits=hits, compiled=compiled, first_step=2.0)
        for index, (hits, compiled) in enumerate(counts)
    ]
    assert text_of(report(attempt(1, "done", "ok", workers)), 200)[-1] == (
        f"seconds to first step: attempt 1 {warmth} 2.0 s"
    )


def test_report_text_names_what_compiled_before_the_cache_was_in_place():
    early = worker(
        0,
        hits=1,
        compiled=0,
        first_step=1.0,
        compiled_before_enable=2,
        compiled_before_enable_names=["jit_a", "jit_b"],
        errors=1,
    )
    early["warnings"] = ["[slow] disk"]

    lines = text_of(report(attempt(1, "done", "ok", [early])), 120)

    assert "  process 0: 2 compiled before the cache was in place: jit_a, jit_b" in lines
    assert "  process 0: 1 cache errors; none of them fails the job" in lines
    assert "  process 0: [slow] disk" in lines


def test_report_text_without_attempts_is_the_header():
    assert text_of({**report(), "cache": None, "exit_code": None, "state": "created"}, 80) == [
        "run lm-1: created, 0 attempts"
    ]


def test_text_says_what_each_host_read_and_uploaded():
    idle = {name: 0 for name in HOST_COUNTS} | {"retry_s": 0.0}
    busy = {**idle, "host": "a", "reads": 3, "read_bytes": 3_000, "uploads": 2, "errors": 1}
    workers = [worker(0, hits=1, compiled=0, first_step=2.0)]
    lines = text_of(report(attempt(1, "done", None, workers, [busy, {**idle, "host": "b"}])), 120)
    notes = [line.strip() for line in lines if line.startswith("  a:") or line.startswith("  b:")]
    assert notes == [
        "a: 3 entries read (3.0 kB), 0 from other hosts, 2 uploaded (0 B)",
        "a: 1 cache errors; none of them fails the job",
    ]


def test_report_text_says_what_was_refused_for_its_signature():
    host = {name: 0 for name in HOST_COUNTS} | {"host": "a", "unsigned": 2, "retry_s": 0.0}
    workers = [worker(0, hits=1, compiled=0, first_step=2.0, bad_signature=1)]

    lines = text_of(report(attempt(1, "done", None, workers, [host])), 120)

    refused = [line.strip() for line in lines if "refused" in line]
    assert refused == [
        "a: 2 unsigned and 0 wrongly signed objects refused (docs/trust.md)",
        "process 0: 0 unsigned and 1 wrongly signed objects refused (docs/trust.md)",
    ]


def test_report_text_says_what_was_sent_again_and_how_long_it_took():
    idle = {name: 0 for name in HOST_COUNTS} | {"retry_s": 0.0}
    hosts = [
        {**idle, "host": "a", "retries": 7, "retry_s": 61.25, "outages": 1},
        {**idle, "host": "b", "retry_s": 10.0},
        {**idle, "host": "c"},
    ]
    workers = [worker(0, hits=1, compiled=0, first_step=2.0, retries=1, retry_s=0.5, outages=2)]

    lines = text_of(report(attempt(1, "done", None, workers, hosts)), 140)

    assert [line.strip() for line in lines if "sent again" in line] == [
        "a: 7 store requests sent again; failed tries and their waits took 61.25 s; "
        "the store was out and left alone once",
        "b: 0 store requests sent again; failed tries and their waits took 10.00 s",
        "process 0: 1 store requests sent again; failed tries and their waits took 0.50 s; "
        "the store was out and left alone 2 times",
    ]
