"""The harness of the bench: alternation, medians, targets, files, failures. No row is measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench import claim_rows, growth, probed, scale, scale_page, table
from tests.bench.catalog import ROWS
from tests.bench.limits import guarded
from tests.bench.results import Bound, Condition, Result, Sample, alternate, once
from tests.bench.rows import Row
from tests.bench.stage import Options
from tests.support.gcs_proxy import ProxiedRequest

pytestmark = pytest.mark.unit

ROW = Result("row", "what it is", "a rival", "s", Bound("<=", 0.5))
ISSUE = {
    "restart_standby": ("<=", 0.70),
    "restart": ("<=", 1.05),
    "launch_warm": ("<=", 0.35),
    "launch_warm_equal_keys": ("<=", 0.70),
    "cold_start": ("<=", 0.40),
    "warm_start": ("<=", 0.25),
    "cold_compilations": ("==", 1.0),
    "cold_compile_cpu": ("<=", 1.15),
    "warm_gets": ("<=", 1.0),
    "main_thread_stall": ("<=", 0.10),
    "put_delay": ("<=", 0.02),
    "get_small": ("<=", 0.5),
    "get_large": ("<=", 1.3),
    "put_small": ("<=", 0.5),
    "put_large": ("<=", 1.3),
    "claims": (">=", 5000.0),
    "growth": ("<=", 1.02),
    "memory": None,
}


class Side:
    """Measurements that are known beforehand, and the order in which they were asked for."""

    def __init__(self, name: str, values: list[float], order: list[str]) -> None:
        self._name = name
        self._values = iter(values)
        self._order = order

    def __call__(self) -> Sample:
        self._order.append(self._name)
        value = next(self._values)
        return Sample(value, {"requests": value * 10})


def measured(ours: list[float], theirs: list[float], **options: object) -> Result:
    order: list[str] = []
    sides = Side("ours", ours, order), Side("theirs", theirs, order)
    return alternate(ROW, *sides, rounds=len(ours), **options)  # type: ignore[arg-type]


def test_alternate_three_rounds_takes_turns():
    order: list[str] = []
    alternate(ROW, Side("o", [1, 2, 3], order), Side("t", [4, 5, 6], order), rounds=3)
    assert order == ["o", "t", "o", "t", "o", "t"]


def test_alternate_odd_rounds_gives_medians_and_every_value():
    result = measured([3.0, 1.0, 9.0], [8.0, 6.0, 5.0])
    assert (result.ours, result.theirs, result.ratio) == (3.0, 6.0, 0.5)
    assert result.rounds == {"ours": [3.0, 1.0, 9.0], "theirs": [8.0, 6.0, 5.0]}
    assert result.beside == {"ours_requests": 30.0, "theirs_requests": 60.0}


def test_alternate_with_max_keeps_the_worst_round():
    result = measured([3.0, 1.0, 9.0], [8.0, 6.0, 5.0], combine=max)
    assert (result.ours, result.theirs) == (9.0, 8.0)


def test_once_is_measured_at_the_first_call_only():
    order: list[str] = []
    rival = once(Side("t", [4.0], order))
    assert [rival().value, rival().value] == [4.0, 4.0]
    assert order == ["t"]


@pytest.mark.parametrize(
    ("bound", "ours", "theirs", "met"),
    [
        (Bound("<=", 0.5), 1.0, 2.0, True),
        (Bound("<=", 0.5), 1.0002, 2.0, False),
        (Bound("==", 1.0), 4.0, 4.0, True),
        (Bound("==", 1.0), 3.0, 4.0, False),
        (Bound(">=", 5000.0), 5000.0, None, True),
        (Bound(">=", 5000.0), 4999.0, None, False),
        (Bound("<=", 0.5), None, None, False),
        (None, 1.0, 2.0, None),
    ],
)
def test_result_bound_is_met_by_what_was_measured(bound, ours, theirs, met):
    result = Result("row", "what", "rival", "s", bound, ours=ours, theirs=theirs)
    assert result.met is met


def test_result_condition_not_held_is_not_met():
    requests = Condition("requests", 2.0, Bound("==", 1))
    result = Result("r", "w", "a", "s", Bound("<=", 0.5), 1.0, 4.0, conditions=(requests,))
    assert result.met is False


def test_result_json_has_the_columns_and_four_digits():
    data = measured([1.23456], [3.0]).to_json()
    columns = ("slug", "what", "ours", "theirs", "unit", "ratio", "target", "met")
    assert {name: data[name] for name in columns} == {
        "slug": "row",
        "what": "what it is",
        "ours": 1.235,
        "theirs": 3.0,
        "unit": "s",
        "ratio": 0.4115,
        "target": 0.5,
        "met": True,
    }
    assert list(data)[: len(columns)] == list(columns)


def test_guarded_row_that_raises_is_reported_as_not_met():
    def fail() -> list[Result]:
        raise OSError("no bucket")

    (result,) = guarded(ROW, fail, limit_s=5)
    assert result.met is False
    assert str(result.error).strip().endswith("OSError: no bucket")
    assert result.to_json()["ours"] is None


def test_guarded_row_that_hangs_is_broken_off_at_its_limit():
    ended = []

    def hang() -> list[Result]:
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.append(True)

    (result,) = guarded(ROW, hang, limit_s=0.1)
    assert str(result.error).strip().endswith("RowTimeout: not done within 0.1 s")
    assert ended == [True]


def test_table_merge_replaces_rows_and_keeps_the_order():
    old = [{"slug": "b", "v": 1}, {"slug": "a", "v": 1}]
    rows = table.merge(old, [{"slug": "a", "v": 2}, {"slug": "c", "v": 2}], ["a", "b", "c"])
    assert rows == [{"slug": "a", "v": 2}, {"slug": "b", "v": 1}, {"slug": "c", "v": 2}]


def test_table_markdown_shows_a_measured_and_a_failed_row():
    good = measured([1.0], [4.0]).to_json()
    bad = Result(
        "bad", "x | y", "", "s", Bound("<=", 1.0), error="Traceback\nOSError: no"
    ).to_json()
    assert table.markdown([good, bad]).splitlines() == [
        "| row | what | against | ours | theirs | ratio | target | met |",
        "|---|---|---|---|---|---|---|---|",
        "| `row` | what it is | a rival | 1 s | 4 s | 0.25 | <= 0.5 | yes |",
        "| `bad` | x \\| y |  |  |  |  | <= 1 | **no** |",
        "",
        "- `row`: ours_requests 10; theirs_requests 40",
        "- `bad` failed: OSError: no",
    ]


def test_table_update_docs_replaces_what_is_between_the_marks(tmp_path):
    page = tmp_path / "bench.md"
    page.write_text("before\n<!-- rows -->\nold\n<!-- end of rows -->\nafter\n")
    rows = [measured([1.0], [4.0]).to_json()]
    table.update_docs(rows, page)
    table.update_docs(rows, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- rows -->\n| row |")
    assert text.endswith("<!-- end of rows -->\nafter\n")
    assert text.count("| `row` |") == 1
    assert "old" not in text


def test_catalog_has_the_rows_and_targets_of_the_table():
    bounds = {row.slug: row.result.bound for row in ROWS}
    assert {s: b and (b.sense, b.limit) for s, b in bounds.items()} == ISSUE


def test_command_failing_row_does_not_stop_the_next(tmp_path, monkeypatch):
    def fail(options: Options, tell: object) -> list[Result]:
        raise ValueError("broken")

    def measure(options: Options, tell: object) -> list[Result]:
        return [measured([1.0] * options.rounds, [4.0] * options.rounds)]

    bad = Row(Result("bad", "bad", "", "s", Bound("<=", 1.0)), fail)
    monkeypatch.setattr(command, "ROWS", (bad, Row(ROW, measure)))
    assert command.main(["--rounds", "2", "--output", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["slug"], row["met"]) for row in rows] == [("bad", False), ("row", True)]
    assert rows[1]["rounds"] == {"ours": [1.0, 1.0], "theirs": [4.0, 4.0]}
    assert (tmp_path / "bench.md").read_text() == table.markdown(rows)


def test_command_named_row_leaves_the_others_as_they_were(tmp_path, monkeypatch):
    old = {**measured([2.0], [2.0]).to_json(), "slug": "other"}
    (tmp_path / "bench.json").write_text(json.dumps([old]))
    row = Row(ROW, lambda options, tell: [measured([1.0], [4.0])])
    monkeypatch.setattr(command, "ROWS", (row,))
    assert command.main(["row", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [row["slug"] for row in rows] == ["row", "other"]


def test_command_unknown_row_names_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["restrat", "--output", str(tmp_path)])
    assert ended.value.code == 2
    assert "no row restrat; there are restart_standby, restart" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_claim_row_p99_becomes_a_condition():
    row = {
        "slug": "claims", "what": "w", "ours": 6000.0, "theirs": None, "unit": "claims/s",
        "ratio": None, "target": 5000, "met": True, "p99_ms": 60.0, "memory_mb": 40.0,
    }  # fmt: skip
    result = claim_rows.as_result(row)
    assert (result.bound, result.met) == (Bound(">=", 5000.0), False)
    assert result.beside == {"memory_mb": 40.0}


def test_digest_of_a_module_is_free_of_device_ids():
    one = "sdy.mesh @m = <[], device_ids=[1]>"
    assert probed.digest(one) == probed.digest(one.replace("[1]", "[3]"))
    assert probed.digest(one) != probed.digest(one.replace("@m", "@n"))


def test_stage_options_give_the_arguments_of_the_example():
    assert Options(layers=3).bytelm(7, 5) == [
        *("--steps", "7", "--layers", "3", "--checkpoint-every", "5")
    ]


def test_documents_marks_are_there():
    page = Path(table.DOCS).read_text()
    assert page.count("<!-- rows -->") == page.count("<!-- end of rows -->") == 1


def cell(workers: int, keys: int, **values: float) -> growth.Cell:
    hosts = max(2, workers // 4)
    known = {
        "cold_requests": 6 * keys, "cold_class_a": 3 * keys, "cold_deletes": keys,
        "cold_cpu_s": 1.0, "warm_requests": keys, "warm_cpu_s": 0.5, "compiled": keys,
    }  # fmt: skip
    return growth.Cell(workers=workers, hosts=hosts, keys=keys, **{**known, **values})  # type: ignore[arg-type]


def cells(**of_largest: float) -> list[growth.Cell]:
    largest = (growth.WORKERS[-1], growth.KEYS[-1])
    return [
        cell(workers, keys, **(of_largest if (workers, keys) == largest else {}))
        for keys in growth.KEYS
        for workers in growth.WORKERS
    ]


def test_growth_flat_requests_are_met():
    result = growth.as_result(cells())
    assert (result.ours, result.theirs, result.met) == (7000.0, 7000.0, True)
    assert result.beside["warm_cpu_ms_a_worker_and_key"] == 0.5 * 1000 / 32 / 1000


@pytest.mark.parametrize(
    "more", [{"warm_requests": 1001}, {"cold_requests": 6007}, {"cold_requests": 6200}]
)
def test_growth_more_requests_than_one_a_host_are_not_met(more):
    assert growth.as_result(cells(**more)).met is False


def test_growth_one_more_cold_request_a_host_is_met():
    assert growth.as_result(cells(cold_requests=6006)).met is True


def test_scale_inputs_come_from_the_rows_that_were_measured():
    rows = [
        {"slug": "get_small", "ours": 0.04, "theirs": 0.1, "error": None,
         "beside": {"theirs_class_a": 2, "theirs_class_b": 3}},
        {"slug": "claims", "ours": 9000.0, "error": "failed", "beside": {}},
        {**growth.as_result(cells()).to_json()},
    ]  # fmt: skip
    inputs, source = scale.inputs_from(rows)
    assert (inputs.get_s, inputs.stock_get_s, inputs.claims_per_s) == (0.04, 0.1, 5000)
    assert (inputs.cold_class_a, inputs.cold_class_b) == (3, 2)
    assert set(source.values()) == {"get_small", "growth"}
    assert "claims_per_s" not in source


def test_scale_warm_start_of_a_thousand_hosts():
    inputs = scale.Inputs()
    stock, each = scale.stock_warm(inputs, 1000), scale.each_warm(inputs, 1000)
    ours = scale.hotstart_warm(inputs, 1000)
    assert (stock.requests, stock.reads_s) == (1_000_000, 200)
    assert (each.requests, each.reads_s) == (200_000, 40)
    assert (ours.requests, ours.claims_s) == (202, 40)
    assert stock.usd == pytest.approx(200_000 * (2 * 5e-6 + 3 * 4e-7))


def test_scale_docs_are_replaced_between_the_marks(tmp_path):
    page = tmp_path / "scale.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    rows = [growth.as_result(cells()).to_json()]
    scale_page.update_docs(rows, page, tmp_path / "growth.svg")
    text = page.read_text()
    assert "\nold\n" not in text
    assert "### 10,000 hosts, 200 keys" in text
    assert "| 32 | 8 | 1000 | 6000 | 1000 | 1 | 0.5 |" in text
    assert text.endswith("<!-- end of figures -->\nafter\n")


@pytest.mark.parametrize(
    ("method", "name", "query", "billed_as"),
    [
        ("GET", "entries/x", "alt=media", "B"),
        ("GET", "", "prefix=entries%2F&maxResults=1000", "A"),
        ("GET", "", "", "B"),
        ("POST", "entries/x", "uploadType=multipart", "A"),
        ("DELETE", "entries/x", "ifGenerationMatch=1", "free"),
    ],
)
def test_proxied_request_is_billed_by_its_kind(method, name, query, billed_as):
    assert ProxiedRequest(method, name, query, 200, 0, 0).billed_as == billed_as
