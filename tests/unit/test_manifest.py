"""Manifests: the JSON form against all that it may be given, merging, choosing, fingerprints."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotstart.conf.schema import CacheSection, JobConfig, RestartSection, TimeoutSection
from hotstart.launcher import asked as asked_module
from hotstart.launcher.asked import Versions, choose, fingerprint, merge
from hotstart.launcher.manifest import (
    MAX_BYTES,
    MAX_RANGES,
    Manifest,
    ManifestEntry,
    ManifestError,
    as_ranges,
)

pytestmark = pytest.mark.unit

DIGEST, OTHER = "a" * 64, "b" * 64
VERSIONS = Versions("0.10.2", "0.10.1", "cpu")
STEP = ManifestEntry("jit_step-1f", 812_345, DIGEST, ((0, 3),), b"\x08\x01", (0, 1, 2, 3), True)
LOCAL = ManifestEntry("jit_local-2e", 10, None, ((0, 0), (2, 3)), None, None, False)
MANIFEST = Manifest((STEP, LOCAL), "0.10.2", "0.10.1", "cpu", 4)


def request(key: str, order: int = 0, **fields: Any) -> dict[str, Any]:
    base = {
        "key": key,
        "size_bytes": 10,
        "digest": DIGEST,
        "options": base64.b64encode(b"options").decode(),
        "devices": [0, 1],
        "callbacks": False,
        "order": order,
    }
    return base | fields


def entries(count: int, size_bytes: int = 10) -> tuple[ManifestEntry, ...]:
    return tuple(
        ManifestEntry(f"jit_{i}", size_bytes, None, ((0, 0),), None, None, False)
        for i in range(count)
    )


def of(*keys: str) -> Manifest:
    found = tuple(ManifestEntry(key, 1, None, ((0, 0),), None, None, False) for key in keys)
    return dataclasses.replace(MANIFEST, entries=found)


# The JSON form.


def test_manifest_round_trip_gives_an_equal_one() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_manifest_json_is_the_documented_form() -> None:
    assert json.loads(MANIFEST.to_json()) == {
        "format": "hotstart manifest",
        "version": 1,
        "jax": "0.10.2",
        "jaxlib": "0.10.1",
        "platform": "cpu",
        "process_count": 4,
        "options": ["CAE="],
        "devices": [[0, 1, 2, 3]],
        "entries": [
            {
                "key": "jit_step-1f",
                "size_bytes": 812345,
                "digest": DIGEST,
                "processes": [[0, 3]],
                "options": 0,
                "devices": 0,
                "load_ahead": True,
            },
            {
                "key": "jit_local-2e",
                "size_bytes": 10,
                "digest": None,
                "processes": [[0, 0], [2, 3]],
                "options": None,
                "devices": None,
                "load_ahead": False,
            },
        ],
    }


def test_manifest_json_holds_equal_options_and_devices_once() -> None:
    many = tuple(dataclasses.replace(STEP, key=f"jit_{i}") for i in range(50))
    form = json.loads(dataclasses.replace(MANIFEST, entries=many).to_json())
    assert (len(form["options"]), len(form["devices"]), len(form["entries"])) == (1, 1, 50)


def test_manifest_entry_knows_who_asked() -> None:
    assert [LOCAL.asked_by(index) for index in range(5)] == [True, False, True, True, False]


def set_at(path: tuple[Any, ...], value: Any) -> bytes:
    form = json.loads(MANIFEST.to_json())
    target = form
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return json.dumps(form).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON: JSONDecodeError"),
        (b"\xff\xfe\x00", "not JSON: UnicodeDecodeError"),
        (b"[" * 200_000, "not JSON: RecursionError"),
        (b"1" * 5_000, "not JSON: ValueError"),
        (b"[]", "the manifest is not an object"),
        (b"{}", "not a manifest of version 1"),
        (b" " * (MAX_BYTES + 1), "50331649 bytes are more than a manifest may have"),
        (set_at(("version",), 2), "not a manifest of version 1"),
        (set_at(("process_count",), 0), "process_count is not a whole number from 1 to 1000000"),
        (set_at(("process_count",), True), "process_count is not a whole number from 1 to 1000000"),
        (set_at(("jax",), ""), "jax is not as it should be"),
        (set_at(("platform",), "c pu"), "platform is not as it should be"),
        (set_at(("options",), {}), "options: not a list"),
        (set_at(("options", 0), 7), "options are no text"),
        (set_at(("options", 0), "CAE"), "options are not base64"),
        (set_at(("options", 0), "\u00e9"), "options are not base64"),
        (set_at(("devices", 0), [-1]), "a device id is not a whole number from 0 to "),
        (set_at(("entries",), None), "entries: not a list"),
        (set_at(("entries",), [0] * 20_001), "entries: 20001 items are too many"),
        (set_at(("entries", 0), []), "an entry is not an object"),
        (set_at(("entries", 0, "key"), "a b"), "key is not as it should be"),
        (set_at(("entries", 0, "key"), "\ud800"), "key is not as it should be"),
        (set_at(("entries", 0, "key"), "x" * 513), "key is not as it should be"),
        (set_at(("entries", 0, "key"), "jit_local-2e"), "a key is there twice"),
        (set_at(("entries", 0, "size_bytes"), 1.5), "size_bytes is not a whole number from 0 to "),
        (set_at(("entries", 0, "digest"), "A" * 64), "digest is not as it should be"),
        (set_at(("entries", 0, "options"), 1), "options is not a whole number from 0 to 0"),
        (set_at(("entries", 0, "options"), -1), "options is not a whole number from 0 to 0"),
        (set_at(("entries", 0, "load_ahead"), 1), "load_ahead is neither true nor false"),
        (
            set_at(("entries", 0, "options"), None),
            "an entry to load ahead lacks its options or devices",
        ),
        (set_at(("entries", 0, "processes"), []), "an entry that nobody asked for"),
        (set_at(("entries", 0, "processes"), [[0]]), "a range has two ends"),
        (set_at(("entries", 0, "processes"), [[2, 1]]), "a range is not a whole number from 2 to "),
        (
            set_at(("entries", 0, "processes"), [[0, 4]]),
            "a range is not a whole number from 0 to 3",
        ),
        (
            set_at(("entries", 0, "processes"), [[0, 1], [1, 2]]),
            "a range is not a whole number from 2 to 3",
        ),
        (set_at(("entries", 0, "processes"), [[0, 0]] * 33), "processes: 33 items are too many"),
    ],
)
def test_manifest_of_other_bytes_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ManifestError) as raised:
        Manifest.from_json(data)
    assert str(raised.value)[: len(message)] == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
PATHS = [
    *[(name,) for name in json.loads(MANIFEST.to_json())],
    *[("entries", 0, name) for name in json.loads(MANIFEST.to_json())["entries"][0]],
    *[("options", 0), ("devices", 0), ("devices", 0, 1), ("entries", 1), ("entries", 0)],
    ("entries", 0, "processes", 0),
]


def is_manifest_or_refused(data: bytes) -> bool:
    try:
        manifest = Manifest.from_json(data)
    except ManifestError:
        return True
    return Manifest.from_json(manifest.to_json()) == manifest


@settings(max_examples=300, deadline=None, derandomize=True)
@given(path=st.sampled_from(PATHS), value=JSON)
def test_manifest_with_anything_anywhere_is_one_or_is_refused(path: Any, value: Any) -> None:
    assert is_manifest_or_refused(set_at(path, value))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.binary(max_size=64))
def test_manifest_of_any_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(data)


def test_manifest_with_flipped_bytes_is_one_or_is_refused() -> None:
    rng = random.Random(5)
    sound = MANIFEST.to_json()
    for _ in range(500):
        data = bytearray(sound)
        data[rng.randrange(len(data))] = rng.randrange(256)
        assert is_manifest_or_refused(bytes(data))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([], ()),
        ([3], ((3, 3),)),
        ([2, 0, 1, 1, 5], ((0, 2), (5, 5))),
        (range(0, 2 * MAX_RANGES, 2), tuple((i, i) for i in range(0, 2 * MAX_RANGES, 2))),
        (range(0, 2 * MAX_RANGES + 1, 2), ((0, 2 * MAX_RANGES),)),
    ],
)
def test_as_ranges_holds_all_indices(indices: Any, expected: Any) -> None:
    assert as_ranges(indices) == expected


# Merging.


def test_merge_orders_by_the_smallest_order_then_the_lowest_process() -> None:
    reports = {
        1: [request("late", 0), request("early", 1), request("only1", 2)],
        0: [request("early", 0), request("late", 3)],
    }
    merged = merge(reports, VERSIONS, 2)
    assert [entry.key for entry in merged.entries] == ["early", "late", "only1"]
    assert [entry.processes for entry in merged.entries] == [((0, 1),), ((0, 1),), ((1, 1),)]
    assert (merged.jax, merged.jaxlib, merged.platform, merged.process_count) == (
        "0.10.2",
        "0.10.1",
        "cpu",
        2,
    )


def test_merge_is_the_same_whatever_the_order_of_the_reports() -> None:
    reports = {i: [request(f"k{(i + j) % 5}", j) for j in range(5)] for i in range(4)}
    backwards = dict(reversed(reports.items()))
    assert merge(reports, VERSIONS, 4).to_json() == merge(backwards, VERSIONS, 4).to_json()


def test_merge_of_agreeing_processes_is_loaded_ahead() -> None:
    reports = {i: [request("k", digest=DIGEST if i else None, size_bytes=i)] for i in range(3)}
    (entry,) = merge(reports, VERSIONS, 3).entries
    assert entry == ManifestEntry("k", 2, DIGEST, ((0, 2),), b"options", (0, 1), True)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"options": ""}, (DIGEST, None, (0, 1), False)),
        ({"devices": [1, 0]}, (DIGEST, b"options", None, False)),
        ({"callbacks": True}, (DIGEST, b"options", (0, 1), False)),
        ({"digest": OTHER}, (None, b"options", (0, 1), True)),
    ],
)
def test_merge_of_disagreeing_processes_keeps_only_what_agrees(
    other: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    (entry,) = merge({0: [request("k")], 1: [request("k", **other)]}, VERSIONS, 2).entries
    assert (entry.digest_hex, entry.options, entry.devices, entry.load_ahead) == expected


def test_merge_leaves_out_what_nobody_stored() -> None:
    reports = {0: [request("stored"), request("small", 1, size_bytes=0, digest=None)]}
    assert [entry.key for entry in merge(reports, VERSIONS, 1).entries] == ["stored"]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"key": "k"},
        request("a b"),
        request("k", size_bytes=-1),
        request("k", size_bytes=True),
        request("k", order="0"),
        request("k", digest="x"),
        request("k", options="?"),
        request("k", options=7),
        request("k", options=[]),
        request("k", devices=3),
        request("k", devices=["0"]),
        request("k", devices=None),
    ],
)
def test_merge_leaves_out_a_broken_report(broken: dict[str, Any]) -> None:
    merged = merge({0: [broken, request("good", 1)]}, VERSIONS, 1)
    assert [entry.key for entry in merged.entries] == ["good"]


def test_merge_leaves_out_a_process_that_is_not_of_the_gang() -> None:
    merged = merge({0: [request("k")], 7: [request("k"), request("x")]}, VERSIONS, 2)
    assert [(entry.key, entry.processes) for entry in merged.entries] == [("k", ((0, 0),))]


def test_merge_beyond_the_room_for_options_reads_ahead_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asked_module, "MAX_OPTIONS_BYTES", 20)
    monkeypatch.setattr(asked_module, "MAX_DEVICE_IDS", 5)
    blobs = [b"a" * 15, b"b" * 15, b"a" * 15, b"c" * 5]
    devices = [[0, 1], [0, 1], [2, 3], [4, 5]]
    reports = [
        request(f"k{i}", i, options=base64.b64encode(blob).decode(), devices=ids)
        for i, (blob, ids) in enumerate(zip(blobs, devices, strict=True))
    ]
    merged = merge({0: reports}, VERSIONS, 1).entries
    assert [entry.options for entry in merged] == [b"a" * 15, None, b"a" * 15, b"c" * 5]
    assert [entry.devices for entry in merged] == [(0, 1), (0, 1), (2, 3), None]
    assert [entry.load_ahead for entry in merged] == [True, False, True, False]


def test_merge_of_more_keys_than_a_manifest_holds_can_still_be_read_back() -> None:
    reports = {0: [request(f"{'k' * 500}{i}", i, digest=None) for i in range(20_001)]}
    data = merge(reports, VERSIONS, 1).to_json()
    assert len(Manifest.from_json(data).entries) == 20_000


# Choosing.


@pytest.mark.parametrize(
    ("known", "new", "stepped", "done", "expected"),
    [
        (None, of("a"), False, False, "new"),
        (of("a", "b"), of("a"), True, False, "known"),
        (of("a", "b"), of("a"), True, True, "new"),
        (of("a", "b"), of("b", "a"), True, False, "known"),
        (of("a", "b"), of("c"), True, False, "new"),
        (of("a", "b"), of("c"), False, False, "known"),
        (of("a", "b"), of("a", "b", "c"), False, False, "new"),
    ],
    ids=[
        "first",
        "part_at_first_step",
        "all_of_a_done_attempt",
        "same_keys",
        "changed_code_stepped",
        "changed_code_that_failed_early",
        "grown",
    ],
)
def test_choose_between_known_and_new(
    known: Manifest | None, new: Manifest, stepped: bool, done: bool, expected: str
) -> None:
    chosen = choose(known, new, stepped=stepped, done=done)
    assert chosen is (new if expected == "new" else known)


def test_versions_fit_only_their_own_manifests() -> None:
    others = [
        {"jax": "0.11"},
        {"jaxlib": "0.11"},
        {"platform": "gpu"},
    ]
    assert VERSIONS.fit(MANIFEST)
    assert [VERSIONS.fit(dataclasses.replace(MANIFEST, **o)) for o in others] == [False] * 3


# Fingerprints.

JOB = JobConfig(
    name="lm",
    script="/jobs/train.py",
    args=["--layers", "12"],
    workers=4,
    resources_per_worker={"CPU": 1.0, "x": 2.0},
    env={"A": "1", "B": "2"},
    run_dir="/runs",
)


@pytest.mark.parametrize(
    "change",
    [
        {"script": "/jobs/other.py"},
        {"script": None, "entrypoint": "train:main"},
        {"working_dir": "/jobs"},
        {"args": ["--layers", "13"]},
        {"workers": 8},
        {"workers_per_host": 2},
        {"platform": "tpu"},
        {"resources_per_worker": {"CPU": 2.0, "x": 2.0}},
        {"env": {"A": "1", "B": "3"}},
    ],
)
def test_fingerprint_of_another_job_is_another(change: dict[str, Any]) -> None:
    assert fingerprint(dataclasses.replace(JOB, **change)) != fingerprint(JOB)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"run_dir": "gs://b/runs"},
        {"cache": CacheSection(location="gs://b/c", load_ahead=False)},
        {"restarts": RestartSection(failures=9)},
        {"timeouts": TimeoutSection(stop_s=9.0)},
        {"placement": "pack"},
        {"env": {"B": "2", "A": "1"}},
        {"resources_per_worker": {"x": 2.0, "CPU": 1.0}},
    ],
)
def test_fingerprint_of_the_same_programs_is_the_same(change: dict[str, Any]) -> None:
    assert fingerprint(dataclasses.replace(JOB, **change)) == fingerprint(JOB)


def test_fingerprint_is_stable() -> None:
    assert fingerprint(JOB) == "50195b51efe8cc327ea426895e4d31af0ed2f2977b33d04d90432f7279aaedc5"


def test_fingerprint_of_a_submitted_job_does_not_depend_on_where_it_was_unpacked() -> None:
    def unpacked(folder: str) -> str:
        job = dataclasses.replace(JOB, script=f"{folder}/src/train.py", working_dir=folder)
        return fingerprint(job, folder)

    assert unpacked("/tmp/pkg_1") == unpacked("/tmp/pkg_2")
    outside = dataclasses.replace(JOB, script="/opt/train.py")
    assert fingerprint(outside, "/tmp/pkg_1") == fingerprint(outside)
