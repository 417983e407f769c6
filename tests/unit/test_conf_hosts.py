"""What a job may ask of its hosts: a range of workers, labels, slices; and the message for each
mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_from_yaml, job_to_tree, job_to_yaml, load_job
from hotstart.conf.schema import JobConfig

pytestmark = pytest.mark.unit

SLICES = "platform: tpu\ntpu: {topology: 4x4, generation: v6e}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()


def load(text: str, *overrides: str, environ: dict[str, str] | None = None) -> JobConfig:
    Path("job.yaml").write_text(f"script: train.py\n{text}\n")
    return load_job("job.yaml", overrides, environ or {}).config


def workers(config: JobConfig) -> tuple[int, int | None, int]:
    return config.workers, config.workers_min, config.least_workers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers: 4", (4, None, 4)),
        ("workers: {min: 2, max: 8}", (8, 2, 2)),
        ("workers: 2..8", (8, 2, 2)),
        ("workers: 3..3", (3, 3, 3)),
    ],
)
def test_workers_of_a_job_file(text: str, expected: tuple[int, int | None, int]) -> None:
    assert workers(load(text)) == expected


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("workers: 4", "workers=2..8", (8, 2, 2)),
        ("workers: 2..8", "workers={min: 3, max: 4}", (4, 3, 3)),
        ("workers: 2..8", "workers=4", (4, None, 4)),
    ],
)
def test_workers_of_the_command_line_take_the_place_of_the_files(
    text: str, override: str, expected: tuple[int, int | None, int]
) -> None:
    assert workers(load(text, override)) == expected
    variable, _, value = override.partition("=")
    environ = {f"HOTSTART_JOB__{variable.upper()}": value}
    assert workers(load(text, environ=environ)) == expected


def test_range_of_workers_survives_the_record_and_its_half_is_no_key_of_its_own() -> None:
    config = load("workers: {min: 2, max: 8}\nlabels: {zone: '!a'}")
    assert job_from_yaml(job_to_yaml(config)) == config
    tree = job_to_tree(config)
    assert tree["workers"] == {"min": 2, "max": 8}
    assert "workers_min" not in tree
    origins = load_job("job.yaml", (), {}).origins
    assert origins["workers"] == "job.yaml:2"
    assert "workers_min" not in origins


@pytest.mark.parametrize(
    "selector", ["us-a", "!us-a", "in(a,b)", "!in(a,b_c.d)", "TPU-V6E", "x" * 63]
)
def test_labels_take_what_ray_takes(selector: str) -> None:
    config = load(f"labels: {{ray.io/accelerator-type: '{selector}'}}")
    assert config.labels == {"ray.io/accelerator-type": selector}
    assert load("", f"labels.zone='{selector}'").labels == {"zone": selector}


def test_slices_of_a_tpu() -> None:
    config = load(SLICES + "workers: 4..12")
    assert (config.tpu.chips, workers(config)) == (16, (12, 4, 4))


MISTAKES = {
    "below one": (
        "workers: 0..2",
        "2: workers: min must be from 1 to max, got {min: 0, max: 2}",
    ),
    "above max": (
        "workers: {min: 3, max: 2}",
        "2: workers: min must be from 1 to max, got {min: 3, max: 2}",
    ),
    "half": (
        "workers: {min: 3}",
        "2: workers: expected a whole number, {min: 2, max: 8} or 2..8; got {min: '3'}",
    ),
    "more": (
        "workers: {min: 3, max: 4, most: 5}",
        "2: workers: expected a whole number, {min: 2, max: 8} or 2..8; "
        "got {min: '3', max: '4', most: '5'}",
    ),
    "fraction": (
        "workers: {min: 1.5, max: 4}",
        "2: workers: expected a whole number, {min: 2, max: 8} or 2..8; got {min: '1.5', max: '4'}",
    ),
    "no range": ("workers: 2...8", "2: workers: expected a whole number, got '2...8'"),
    "uneven min": (
        "workers: 3..4\nworkers_per_host: 2",
        "3: workers_per_host: 2 does not divide the min of workers, 3",
    ),
    "half as a key": ("workers_min: 2", "2: unknown key workers_min; did you mean workers?"),
    "label name": ("labels: {'a b': c}", "2: labels.a b: not a name that a Ray label may have"),
    "label": (
        "labels: {zone: 'a b'}",
        "2: labels.zone: expected a value, !value, in(a,b) or !in(a,b), got 'a b'",
    ),
    "label without a value": (
        "labels: {zone: ''}",
        "2: labels.zone: expected a value, !value, in(a,b) or !in(a,b), got ''",
    ),
    "slices of another platform": (
        "tpu: {topology: 4x4, generation: v6e}",
        "2: tpu.topology: platform is cpu; slices are of platform tpu",
    ),
    "generation": (
        "platform: tpu\ntpu: {topology: 4x4}",
        "3: tpu.topology: give tpu.generation too, such as v6e",
    ),
    "generation alone": (
        "platform: tpu\ntpu: {generation: v6e}",
        "3: tpu.generation: give tpu.topology too, or neither",
    ),
    "unknown generation": (
        "platform: tpu\ntpu: {topology: 4x4, generation: v6}",
        "3: tpu.generation: unknown value 'v6'; did you mean v6e?",
    ),
    "topology": (
        "platform: tpu\ntpu: {topology: 16, generation: v6e}",
        "3: tpu.topology: expected chips like 4x4 or 2x2x2, got '16'",
    ),
    "half a slice": (
        SLICES + "workers: 6",
        "4: workers: whole slices of 4x4 have 4 hosts each, got 6 workers",
    ),
    "half a slice at least": (
        SLICES + "workers: 2..8",
        "4: workers: whole slices of 4x4 have 4 hosts each, got 2 workers",
    ),
    "chips of a host": (
        SLICES + "resources_per_worker: {TPU: 3}",
        "3: tpu.topology: a slice has 16 chips (4x4), which hosts of 3 chips "
        "(resources_per_worker.TPU) don't make up",
    ),
    "workers of a host": (
        SLICES + "workers: 4\nworkers_per_host: 2",
        "5: workers_per_host: a TPU's host takes one worker, with all of its chips: "
        "workers_per_host must be 1",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_told_with_its_line(case: str) -> None:
    text, expected = MISTAKES[case]
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value).startswith(f"job.yaml:{expected}")
