"""What differs among workers is named with all values and who has them, in exactly these words."""

from __future__ import annotations

import random
import time

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.launcher.preflight import (
    LOCATION,
    READABLE,
    Preflight,
    WorkerFacts,
    agents_read,
    differences,
    facts_from,
    recorded,
    stages_before_user_code,
)

pytestmark = pytest.mark.unit

STRICT = frozenset({"start", "store"})


def facts(index: int, host: str = "a", stage: str = "start", /, **values: str) -> WorkerFacts:
    return WorkerFacts(index, host, stage, values)


def gang(*values: str, name: str = "jaxlib", hosts: str = "") -> list[WorkerFacts]:
    """One worker a value, on the host of the same place in `hosts`."""
    places = hosts or "a" * len(values)
    return [
        WorkerFacts(index, host, "start", {name: value})
        for index, (value, host) in enumerate(zip(values, places, strict=True))
    ]


def texts(found: list[WorkerFacts]) -> list[str]:
    return list(map(str, differences(found)))


def test_differences_of_equal_workers_are_none():
    assert differences([facts(i, jax="0.10.2", XLA_FLAGS="--a=1") for i in range(4)]) == ()


def test_differences_name_both_values_the_processes_and_the_host_of_the_rarer():
    found = texts(gang("0.10.2", "0.10.2", "0.10.2", "0.10.2", "0.10.1", hosts="aaaab"))
    assert found == ["jaxlib differs: 0.10.2 on processes 0-3, 0.10.1 on process 4 (host b)"]


def test_differences_on_one_host_name_no_host():
    assert texts(gang("1", "2", "1")) == ["jaxlib differs: 1 on processes 0, 2, 2 on process 1"]


def test_differences_of_a_fact_that_some_lack_say_none():
    found = [facts(0, jax="1"), facts(1, jax="1", libtpu="0.0.9"), facts(2, jax="1")]
    assert texts(found) == ["libtpu differs: none on processes 0, 2, 0.0.9 on process 1"]


def test_differences_of_flags_show_those_that_not_all_have():
    found = texts(gang("--a=1 --b=2", "--a=1 --b=3 --c", "--a=1 --b=2", name="XLA_FLAGS"))
    assert found == ["XLA_FLAGS differs: --b=2 on processes 0, 2, --b=3 --c on process 1"]


def test_differences_of_flags_that_one_worker_has_more_say_none_for_the_others():
    found = texts(gang("--a=1", "--a=1 --c", "--a=1", name="XLA_FLAGS"))
    assert found == ["XLA_FLAGS differs: none on processes 0, 2, --c on process 1"]


def test_differences_of_equally_many_name_the_lowest_process_first():
    assert texts(gang("2", "1")) == ["jaxlib differs: 2 on process 0, 1 on process 1"]


def test_differences_of_long_values_are_told_apart_by_their_digests():
    (text,) = texts(gang("x" * 300 + "1", "x" * 300 + "2"))
    long = "x" * 200
    assert text == (
        f"jaxlib differs: {long}... (SHA-256 8ab7b905) on process 0, "
        f"{long}... (SHA-256 4f0977a7) on process 1"
    )


def test_differences_of_many_scattered_processes_and_hosts_are_counted():
    hosts = "abcdefghijklmnopqrstuvwxyz"
    found = texts(gang(*("2" if i % 2 else "1" for i in range(26)), hosts=hosts))
    assert found == [
        "jaxlib differs: 1 on processes 0, 2, 4, 6, 8, 10, 12, 14 and 5 more, "
        "2 on processes 1, 3, 5, 7, 9, 11, 13, 15 and 5 more (hosts b, d, f, h and 9 more)"
    ]


def test_location_that_nobody_can_read_is_named_although_all_agree():
    found = texts(gang(*["can't be read: gone"] * 3, name=LOCATION, hosts="aab"))
    assert found == ["cache.location: can't be read: gone on processes 0-2 (hosts a, b)"]


def test_location_that_one_host_cannot_read_is_a_difference():
    found = texts(gang(READABLE, READABLE, "can't be read: 403", name=LOCATION, hosts="aab"))
    assert found == [
        "cache.location differs: can be read on processes 0-1, "
        "can't be read: 403 on process 2 (host b)"
    ]


def test_difference_as_json_has_all_values_processes_and_hosts():
    (found,) = differences(gang("1", "2", "1", hosts="aba"))
    assert found.to_json() == {
        "name": "jaxlib",
        "text": "jaxlib differs: 1 on processes 0, 2, 2 on process 1 (host b)",
        "values": [
            {"value": "1", "processes": [0, 2], "hosts": ["a"]},
            {"value": "2", "processes": [1], "hosts": ["b"]},
        ],
    }


def test_differences_come_out_of_the_record_as_they_went_in():
    (found,) = differences(gang("1", "2", "1", hosts="aba"))
    assert recorded({"differences": [found.to_json()]}) == [found.to_json()]


@pytest.mark.parametrize(
    ("stage", "read"),
    [
        ({}, []),
        ({"differences": {"name": 1}}, []),
        ({"differences": [3, {}]}, [{"name": "", "text": "", "values": []}]),
        (
            {"differences": [{"name": "x", "values": [1, {"processes": ["a", 2], "hosts": 3}]}]},
            [
                {
                    "name": "x",
                    "text": "",
                    "values": [{"value": "", "processes": [2], "hosts": []}],
                }
            ],
        ),
    ],
)
def test_differences_of_a_strange_record_are_what_can_be_read(stage, read):
    assert recorded(stage) == read


def test_64_workers_are_compared_within_a_second():
    rng = random.Random(64)
    workers = []
    for index in range(64):
        values = {f"fact {n}": "same" for n in range(13)}
        values["XLA_FLAGS"] = " ".join(f"--flag_{n}={n}" for n in range(40))
        values["jaxlib"] = "0.10.1" if index in (17, 18, 63) else "0.10.2"
        workers.append(WorkerFacts(index, f"host-{index // 8}", "start", values))
    rng.shuffle(workers)
    preflight = Preflight(64, STRICT)

    began = time.perf_counter()
    found = [difference for worker in workers for difference in preflight.heard(worker)]
    seconds = time.perf_counter() - began

    text = (
        "jaxlib differs: 0.10.2 on processes 0-16, 19-62, "
        "0.10.1 on processes 17-18, 63 (hosts host-2, host-7)"
    )
    assert list(map(str, found)) == [text]
    assert preflight.refusal == text
    assert seconds < 1.0


def test_preflight_compares_a_stage_once_all_have_said_theirs():
    preflight = Preflight(2)
    assert preflight.heard(facts(1, jax="1")) == ()
    assert preflight.heard(facts(1, "a", "devices", kind="x")) == ()
    assert list(map(str, preflight.heard(facts(0, jax="2")))) == [
        "jax differs: 2 on process 0, 1 on process 1"
    ]
    assert (preflight.refusal, preflight.lets_go_on("start")) == (None, False)


def test_preflight_in_strict_mode_lets_equal_workers_go_on_once_all_stages_are_there():
    preflight = Preflight(2, STRICT)
    said = [facts(i, "a", stage, jax="1") for stage in ("start", "store") for i in range(2)]
    assert [(preflight.heard(f), preflight.lets_go_on(f.stage)) for f in said] == [
        ((), False),
        ((), False),
        ((), False),
        ((), True),
    ]
    assert preflight.refusal is None


def test_preflight_in_strict_mode_refuses_a_difference_before_user_code_only():
    preflight = Preflight(2, STRICT)
    for index in range(2):
        preflight.heard(facts(index, "a", "devices", kind=str(index)))
    assert preflight.refusal is None
    for index in range(2):
        preflight.heard(facts(index, jax=str(index)))
    assert preflight.refusal == "jax differs: 0 on process 0, 1 on process 1"
    assert not preflight.lets_go_on("start")


def test_preflight_of_a_replaced_worker_tells_each_difference_once_and_goes_on_anew():
    preflight = Preflight(2, frozenset({"start"}))
    for index in range(2):
        preflight.heard(facts(index, jax="1"))
    assert preflight.heard(facts(1, jax="1")) == ()
    assert preflight.lets_go_on("start")
    assert not preflight.lets_go_on("devices")
    assert len(preflight.heard(facts(1, jax="2"))) == 1
    assert preflight.heard(facts(1, jax="2")) == ()


@pytest.mark.parametrize(
    ("config", "stages", "read"),
    [
        (None, set(), False),
        (CacheConfig("/c"), set(), True),
        (CacheConfig("/c", strict=True), {"start", "store"}, True),
        (CacheConfig("/c", strict=True, compile="every"), {"start"}, False),
    ],
)
def test_stages_that_user_code_waits_for_are_those_of_strict_mode(config, stages, read):
    assert (stages_before_user_code(config), agents_read(config)) == (stages, read)


@pytest.mark.parametrize(
    "message", [None, [], {}, {"stage": "no such", "values": {}}, {"stage": "start", "values": 3}]
)
def test_facts_from_a_message_of_another_form_are_none(message):
    assert facts_from(0, "a", message) is None


def test_facts_from_a_worker_are_bounded_text():
    values = {f"{n:03d}": "x" * 20_000 for n in range(100)} | {"n": 1}
    made = facts_from(3, "b", {"stage": "start", "values": values})
    assert made == WorkerFacts(3, "b", "start", {f"{n:03d}": "x" * 16_384 for n in range(64)})
