"""What a good job file resolves to: layers, defaults, paths, interpolation, the round trip."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from hotstart.conf.load import LoadedJob, job_from_yaml, job_to_yaml, load_job
from hotstart.conf.schema import CacheSection, JobConfig, RestartSection, parse_size

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, beside the folder `jobs` that holds the job and its script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("def main(): ...\n")
    return tmp_path


def load(text: str, *overrides: str, environ: Mapping[str, str] | None = None) -> LoadedJob:
    text = textwrap.dedent(text)
    if "entrypoint" not in text:
        text = f"script: train.py\n{text}"
    Path("jobs/job.yaml").write_text(text, encoding="utf-8")
    return load_job("jobs/job.yaml", overrides, environ or {})


def test_load_job_script_only_gives_every_default(folder: Path) -> None:
    job = load("")
    assert job.source == folder / "jobs" / "job.yaml"
    assert job.config == JobConfig(
        name="job",
        script=str(folder / "jobs" / "train.py"),
        resources_per_worker={"CPU": 1.0},
        cache=CacheSection(location=str(folder / "home" / ".hotstart" / "cache")),
        run_dir=str(folder / "home" / ".hotstart" / "runs"),
    )
    assert job.origins["script"] == "job.yaml:1"
    assert job.origins["resources_per_worker.CPU"] == "preset local.yaml"
    assert set(job.origins.values()) == {"job.yaml:1", "preset local.yaml", "default"}


def test_load_job_entrypoint_puts_the_yaml_folder_on_the_path(folder: Path) -> None:
    job = load("entrypoint: train:main\n")
    assert (job.config.entrypoint, job.config.script) == ("train:main", None)
    assert job.config.working_dir == str(folder / "jobs")


@pytest.mark.parametrize(
    ("platform", "per_host", "resources"),
    [
        ("cpu", None, {"CPU": 1.0}),
        ("gpu", 1, {"CPU": 1.0, "GPU": 1.0}),
        ("tpu", 1, {"TPU": 4.0}),
    ],
)
def test_load_job_platform_chooses_the_preset(
    folder: Path, platform: str, per_host: int | None, resources: dict[str, float]
) -> None:
    config = load("", f"platform={platform}").config
    assert (config.workers_per_host, config.resources_per_worker) == (per_host, resources)


@pytest.mark.parametrize(
    ("per_host", "variable", "override", "value", "origin"),
    [
        (None, None, None, 1, "preset gpu.yaml"),
        ("2", None, None, 2, "job.yaml:3"),
        ("2", "3", None, 3, "environment HOTSTART_JOB__WORKERS_PER_HOST"),
        ("2", "3", "4", 4, "command line"),
        (None, "3", None, 3, "environment HOTSTART_JOB__WORKERS_PER_HOST"),
    ],
)
def test_load_job_layers_override_in_order(
    folder: Path,
    per_host: str | None,
    variable: str | None,
    override: str | None,
    value: int,
    origin: str,
) -> None:
    text = "platform: gpu\n" + (f"workers_per_host: {per_host}\n" if per_host else "")
    environ = {"HOTSTART_JOB__WORKERS_PER_HOST": variable} if variable else {}
    overrides = [f"workers_per_host={override}"] if override else []
    job = load(text, "workers=12", *overrides, environ=environ)
    assert job.config.workers_per_host == value
    assert job.origins["workers_per_host"] == origin


def test_load_job_null_override_of_a_preset_is_none(folder: Path) -> None:
    job = load("platform: gpu\nworkers: 2\nworkers_per_host: null\n")
    assert job.config.workers_per_host is None


def test_load_job_null_override_brings_the_default_back(folder: Path) -> None:
    job = load("run_dir: /data/runs\nname: other\n", "run_dir=null", "name=")
    assert job.config.run_dir == str(folder / "home" / ".hotstart" / "runs")
    assert job.config.name == "job"
    assert (job.origins["run_dir"], job.origins["name"]) == ("default", "default")


def test_load_job_env_merges_by_name_over_all_layers(folder: Path) -> None:
    job = load(
        "env: {A: yaml, B: yaml, C: yaml}\n",
        "env.C=line",
        "env.with.dot=x",
        environ={"HOTSTART_JOB__ENV__B": "outside", "HOTSTART_JOB__ENV__two__parts": "y"},
    )
    assert job.config.env == {
        "A": "yaml",
        "B": "outside",
        "C": "line",
        "two__parts": "y",
        "with.dot": "x",
    }
    assert job.origins["env.A"] == "job.yaml:2"
    assert job.origins["env.B"] == "environment HOTSTART_JOB__ENV__B"
    assert job.origins["env.C"] == "command line"


def test_load_job_values_of_environment_and_command_line_are_yaml(folder: Path) -> None:
    job = load(
        "",
        "args=[--lr, 1e-3, 'a b']",
        "cache={strict: yes, max_size: 1.5GiB}",
        environ={"HOTSTART_JOB__RESTARTS": "{failures: 7}", "HOTSTART_JOB__CACHE__MODE": "off"},
    )
    assert job.config.args == ["--lr", "1e-3", "a b"]
    assert job.config.restarts == RestartSection(failures=7)
    assert (job.config.cache.strict, job.config.cache.mode) == (True, "off")
    assert job.config.cache.max_size_bytes == 1610612736


def test_load_job_text_stays_as_written(folder: Path) -> None:
    job = load("env: {NO: off, B: true, C: 010, D: 1e3, E: 12:30, F: ''}\nargs: [yes, 0x10]\n")
    assert job.config.env == {
        "NO": "off",
        "B": "true",
        "C": "010",
        "D": "1e3",
        "E": "12:30",
        "F": "",
    }
    assert job.config.args == ["yes", "0x10"]


def test_load_job_merge_keys_fill_in_what_is_not_given(folder: Path) -> None:
    job = load("<<: [{workers: 2, name: first}, {name: second, platform: cpu}]\nworkers: 4\n")
    assert (job.config.workers, job.config.name, job.config.platform) == (4, "first", "cpu")


def test_load_job_relative_paths_start_where_they_are_written(folder: Path) -> None:
    (folder / "other.py").write_text("")
    (folder / "jobs" / "lib").mkdir()
    job = load(
        "run_dir: runs\nworking_dir: lib\ncache: {location: store}\n",
        "script=other.py",
        environ={"HOTSTART_JOB__CACHE__NODE_DIR": "node"},
    )
    assert job.config.run_dir == str(folder / "jobs" / "runs")
    assert job.config.working_dir == str(folder / "jobs" / "lib")
    assert job.config.cache.location == str(folder / "jobs" / "store")
    assert job.config.script == str(folder / "other.py")
    assert job.config.cache.node_dir == str(folder / "node")


def test_load_job_bucket_locations_are_normalized(folder: Path) -> None:
    job = load("run_dir: gs://bucket//runs/\ncache: {location: gs://bucket/cache/}\n")
    assert job.config.run_dir == "gs://bucket/runs"
    assert job.config.cache.location == "gs://bucket/cache"


@pytest.mark.parametrize(
    ("text", "environ", "location", "origin"),
    [
        ("", {"HOTSTART_HOME": "/h"}, "/h/cache", "environment HOTSTART_HOME"),
        (
            "",
            {"HOTSTART_HOME": "/h", "JAX_COMPILATION_CACHE_DIR": "gs://b/c/"},
            "gs://b/c",
            "environment JAX_COMPILATION_CACHE_DIR",
        ),
        (
            "cache: {location: null}",
            {"JAX_COMPILATION_CACHE_DIR": "/j"},
            "/j",
            "environment JAX_COMPILATION_CACHE_DIR",
        ),
        ("cache: {location: /y}", {"JAX_COMPILATION_CACHE_DIR": "/j"}, "/y", "job.yaml:2"),
        (
            "",
            {"HOTSTART_JOB__CACHE__LOCATION": "/e", "JAX_COMPILATION_CACHE_DIR": "/j"},
            "/e",
            "environment HOTSTART_JOB__CACHE__LOCATION",
        ),
        (
            "cache: {mode: off}",
            {"HOTSTART_HOME": "/h", "JAX_COMPILATION_CACHE_DIR": "s3://stock/jax"},
            "/h/cache",
            "environment HOTSTART_HOME",
        ),
    ],
)
def test_load_job_cache_location_default_has_its_origin(
    folder: Path, text: str, environ: dict[str, str], location: str, origin: str
) -> None:
    job = load(text, environ=environ)
    assert job.config.cache.location == location
    assert job.origins["cache.location"] == origin


def test_load_job_interpolation_reads_keys_and_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSTART_TEST_WORKERS", "3")
    monkeypatch.setenv("HOTSTART_TEST_PLATFORM", "gpu")
    job = load(
        """
        name: run-${workers}
        workers: ${oc.env:HOTSTART_TEST_WORKERS}
        platform: ${oc.env:HOTSTART_TEST_PLATFORM}
        args: ["--out=${run_dir}/${name}"]
        cache: {location: "gs://bucket/${name}"}
        env: {LITERAL: '\\${HOME}', COUNT: "${workers}"}
        """,
        "run_dir=/data",
    )
    assert (job.config.workers, job.config.workers_per_host) == (3, 1)
    assert job.config.args == ["--out=/data/run-3"]
    assert job.config.cache.location == "gs://bucket/run-3"
    assert job.config.env == {"LITERAL": "${HOME}", "COUNT": "3"}


def test_load_job_writes_nothing(folder: Path) -> None:
    load("run_dir: runs\ncache: {location: store, node_dir: node}\n")
    assert sorted(path.name for path in folder.rglob("*")) == ["job.yaml", "jobs", "train.py"]


def test_job_to_yaml_round_trip_gives_an_equal_job(folder: Path) -> None:
    config = dataclasses.replace(
        load("platform: gpu\nworkers: 4\n").config,
        args=["${x}", "\\${x}", "null", "~", "", "off", "1e3", "a\nb", " é \U0001f600 ", "- x: #"],
        env={"A.B": "???x", "${k}": "\\\\${v}", "N": "null", "T": "\t"},
        resources_per_worker={"accelerator_type:H100": 1e-05, "CPU": 1e300},
    )
    assert job_from_yaml(job_to_yaml(config)) == config


def test_job_from_yaml_of_an_older_job_takes_the_defaults_of_keys_it_lacks(folder: Path) -> None:
    config = load("").config
    newer = ("compile", "read_ahead", "load_ahead", "standby")
    lines = job_to_yaml(config).splitlines(keepends=True)
    older = "".join(line for line in lines if line.strip().partition(":")[0] not in newer)
    assert len(older.splitlines()) == len(lines) - len(newer)
    assert job_from_yaml(older) == config


@pytest.mark.parametrize(("platform", "load_ahead"), [("cpu", True), ("gpu", False), ("tpu", True)])
def test_load_job_load_ahead_is_off_on_gpu_unless_asked_for(
    folder: Path, platform: str, load_ahead: bool
) -> None:
    job = load(f"platform: {platform}\n")
    assert (job.config.cache.read_ahead, job.config.cache.load_ahead) == (True, load_ahead)
    assert load(f"platform: {platform}\n", "cache.load_ahead=true").config.cache.load_ahead


def test_load_job_compile_every_and_no_standby_are_taken(folder: Path) -> None:
    job = load(
        "cache: {compile: every, read_ahead: no}\n"
        "restarts: {standby: off, exit_codes: [75, 3], refill_after_s: null}\n"
    )
    assert (job.config.restarts.exit_codes, job.config.restarts.refill_after_s) == ([75, 3], None)
    assert job_from_yaml(job_to_yaml(job.config)) == job.config
    cache, restarts = job.config.cache, job.config.restarts
    assert (cache.compile, cache.read_ahead, restarts.standby) == ("every", False, False)


def test_loaded_job_is_frozen(folder: Path) -> None:
    job = load("")
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.config.cache.strict = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1048576", 1048576),
        ("1 kB", 1000),
        ("1KiB", 1024),
        ("1.5mib", 1572864),
        ("50GiB", 53687091200),
        ("2TB", 2000000000000),
        (" 7B ", 7),
    ],
)
def test_parse_size_unit_gives_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "1e9", "1 PB", "inf", "1.GB", "٣GB"])
def test_parse_size_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_conf_without_load_imports_neither_omegaconf_nor_ray() -> None:
    code = (
        "import sys, hotstart.conf.errors, hotstart.conf.schema, hotstart.conf.check\n"
        "print(sorted({'omegaconf', 'ray', 'jax', 'gcsfs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
