"""Bad files, environments, command lines and directories, with the one line that each earns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_from_yaml, load_job

pytestmark = pytest.mark.unit

TOP = (
    "name, entrypoint, script, args, resume, workers, workers_per_host, resources_per_worker, "
    "labels, placement, platform, tpu, jax_distributed, working_dir, cache, require_warm, run_dir, "
    "restarts, env, secret_env, cost_per_worker_hour, timeouts"
)
CACHE = (
    "location, mode, strict, min_compile_time_s, node_dir, max_size, flush_timeout_s, deadline_s, "
    "compile, signing_key_file, read_ahead, load_ahead, children"
)
NAME_RULE = "use 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a script and a module in it, and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "train.py").write_text("def main(): ...\n")
    (tmp_path / "notes.txt").write_text("not a directory\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "broken.py").write_text("x = 1\ndef main(:\n")
    return tmp_path


def error_of(
    text: str, *overrides: str, environ: dict[str, str] | None = None, name: str = "job.yaml"
) -> ConfigError:
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_job(name, overrides, environ or {})
    return caught.value


# Whole files; {folder} in a message is the folder of the job file.
WHOLE_FILE = {
    "empty": ("", ": the file is empty; give script (a path) or entrypoint (module:function)"),
    "only_comments": (
        "# nothing\n",
        ": the file is empty; give script (a path) or entrypoint (module:function)",
    ),
    "list": ("- a\n", ": expected key: value lines at the top, got a list"),
    "text": ("hello\n", ": expected key: value lines at the top, got 'hello'"),
    "nothing_to_run": (
        "workers: 2\n",
        ": nothing to run; give script (a path) or entrypoint (module:function)",
    ),
    "two_programs": (
        "script: train.py\nentrypoint: train:main\n",
        ":1: script: entrypoint (job.yaml:2) is given too; keep one of them",
    ),
    "script_missing": (
        "script: trian.py\n",
        ":1: script: {folder}/trian.py does not exist; did you mean train.py?",
    ),
    "script_directory": (
        "script: package\n",
        ":1: script: {folder}/package is a directory, not a script",
    ),
    "script_home": (
        "script: ~no-such-user/x.py\n",
        ":1: script: '~no-such-user/x.py' is not a usable path",
    ),
    "entrypoint_colon": (
        "entrypoint: train.main\n",
        ":1: entrypoint: expected module:function, got 'train.main'",
    ),
    "entrypoint_not_python": (
        "entrypoint: train.py:ma in\n",
        ":1: entrypoint: expected module:function with dotted Python names, got 'train.py:ma in'",
    ),
    "entrypoint_module": (
        "entrypoint: trian:main\n",
        ":1: entrypoint: module trian cannot be found in {folder} or on Python's path; "
        "did you mean train?",
    ),
    "entrypoint_function": (
        "entrypoint: train:man\n",
        ":1: entrypoint: {folder}/train.py defines no man; did you mean train:main?",
    ),
    "entrypoint_syntax": (
        "entrypoint: broken:main\n",
        ":1: entrypoint: {folder}/broken.py:2: Python cannot parse it: invalid syntax",
    ),
    "working_dir": (
        "script: train.py\nworking_dir: nowhere\n",
        ":2: working_dir: {folder}/nowhere is not a directory",
    ),
    "working_dir_long": (
        f"script: train.py\nworking_dir: {'d' * 300}\n",
        f":2: working_dir: '{'d' * 75}...': File name too long",
    ),
    "run_dir_file": (
        "script: train.py\nrun_dir: notes.txt/runs\n",
        ":2: run_dir: {folder}/notes.txt is not a directory",
    ),
    "cache_file": (
        "script: train.py\ncache: {location: notes.txt}\n",
        ":2: cache.location: {folder}/notes.txt is not a directory",
    ),
    "deep": (
        "args: " + "[" * 5000,
        ": not usable YAML: nested too deeply",
    ),
}


@pytest.mark.parametrize("case", WHOLE_FILE)
def test_load_job_bad_file_says_what_to_do(folder: Path, case: str) -> None:
    text, expected = WHOLE_FILE[case]
    assert str(error_of(text)) == f"job.yaml{expected}".replace("{folder}", str(folder))


def test_load_job_aliases_that_multiply_are_refused(folder: Path) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    text = "\n".join(["l0: &l0 [x]", *levels])
    assert str(error_of(text)).endswith("not a job file: more than 10000 values")


def test_load_job_file_missing_names_the_nearest(folder: Path) -> None:
    Path("job.yaml").write_text("script: train.py\n")
    with pytest.raises(ConfigError) as caught:
        load_job("jbo.yaml")
    assert str(caught.value) == "jbo.yaml: no such file; did you mean job.yaml?"


def test_load_job_directory_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("package")
    assert str(caught.value) == "package: is a directory; give the job's YAML file"


def test_load_job_binary_file_is_refused(folder: Path) -> None:
    Path("job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError) as caught:
        load_job("job.yaml")
    assert str(caught.value) == "job.yaml: not UTF-8 text; give the job's YAML file"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a\0b", "a\\x00b: not a usable path"),
        ("n" * 300, f"{'n' * 300}: cannot be read: File name too long"),
    ],
)
def test_load_job_unusable_path_is_refused(folder: Path, path: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert str(caught.value) == expected


def test_load_job_file_name_unfit_as_name_asks_for_name(folder: Path) -> None:
    error = error_of("script: train.py\n", name="my job.yaml")
    assert str(error) == f"my job.yaml: name: 'my job' cannot name a folder; {NAME_RULE}"
    assert error.key == "name"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("workers", "command line: expected key=value, got 'workers'"),
        ("workers=x", "command line: workers: expected a whole number, got 'x'"),
        ("=3", f"command line: unknown key ''. Valid keys: {TOP}"),
        (
            "cache.locaton=/x",
            "command line: unknown key cache.locaton; did you mean cache.location? "
            f"Valid keys of cache: {CACHE}",
        ),
        (
            "env.A=[1",
            "command line: env.A: not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("env.A=b: c", "command line: env.A: expected text, got a mapping"),
        ("workers.x=1", "command line: workers: expected a whole number, got a mapping"),
        (
            "entrypoint=train:main",
            "job.yaml:1: script: entrypoint (command line) is given too; keep one of them",
        ),
        (
            "restarts.failures=-1",
            "command line: restarts.failures: expected a whole number of at least 0, got -1",
        ),
    ],
)
def test_load_job_bad_override_names_the_command_line(
    folder: Path, override: str, expected: str
) -> None:
    assert str(error_of("script: train.py\n", override)) == expected


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("HOTSTART_JOB__WORKERS", "two", "workers: expected a whole number, got 'two'"),
        (
            "HOTSTART_JOB__WRKERS",
            "2",
            f"unknown key wrkers; did you mean workers? Valid keys: {TOP}",
        ),
        ("HOTSTART_JOB__ARGS", "[1", "args: not valid YAML: expected ',' or ']', but got "),
        (
            "JAX_COMPILATION_CACHE_DIR",
            "s3://b",
            "cache.location: s3://b: unknown scheme s3://; give a directory or gs://bucket/prefix",
        ),
        (
            "HOTSTART_HOME",
            "s3://b",
            "run_dir: s3://b/runs: unknown scheme s3://; give a directory or gs://bucket/prefix",
        ),
    ],
)
def test_load_job_bad_environment_names_the_variable(
    folder: Path, variable: str, value: str, expected: str
) -> None:
    error = error_of("script: train.py\n", environ={variable: value})
    expected = expected + "'<stream end>'" if expected.endswith("but got ") else expected
    assert str(error) == f"environment {variable}: {expected}"


def deny_access(monkeypatch: pytest.MonkeyPatch, denied: Path) -> None:
    """Root may write everywhere, so the refusal of one directory is put on."""
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != denied and allowed(path, mode)
    )


def test_load_job_run_dir_unwritable_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny_access(monkeypatch, folder / "package")
    error = error_of("script: train.py\nrun_dir: package/runs\n")
    expected = (
        f"job.yaml:2: run_dir: {folder}/package/runs cannot be made: "
        f"no permission to write to {folder}/package"
    )
    assert str(error) == expected


@pytest.mark.parametrize(("mode", "verb"), [("read-write", "written"), ("read-only", "read")])
def test_load_job_cache_directory_without_permission_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str, verb: str
) -> None:
    deny_access(monkeypatch, folder / "package")
    error = error_of(f"script: train.py\ncache:\n  location: package\n  mode: {mode}\n")
    expected = f"job.yaml:3: cache.location: {folder}/package cannot be {verb}: permission denied"
    assert str(error) == expected


def test_job_from_yaml_unknown_key_names_the_record() -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_yaml("script: /x/train.py\nname: x\nshards: 2\n", "gs://b/runs/x/job.yaml")
    expected = f"gs://b/runs/x/job.yaml:3: unknown key shards. Valid keys: {TOP}"
    assert str(caught.value) == expected
