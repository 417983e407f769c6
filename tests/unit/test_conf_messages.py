"""Every bad setting of a job file, with the one line that it earns."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotstart.conf.errors import ConfigError
from hotstart.conf.load import load_job

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
SIZE_RULE = "expected a size like 50GiB, 500MB or a number of bytes"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a script in it, and a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "train.py").write_text("def main(): ...\n")
    return tmp_path


# Each case stands below `script: train.py`, so its own first line is line 2.
BELOW_SCRIPT = {
    "unknown_key": ("wokers: 2", f"2: unknown key wokers; did you mean workers? Valid keys: {TOP}"),
    "unknown_key_in_section": (
        "cache:\n  locaton: /x",
        f"3: unknown key cache.locaton; did you mean cache.location? Valid keys of cache: {CACHE}",
    ),
    "unknown_key_case": (
        "Workers: 2",
        f"2: unknown key Workers; did you mean workers? Valid keys: {TOP}",
    ),
    "unknown_key_of_a_section": (
        "backoff_s: 2",
        f"2: unknown key backoff_s; did you mean restarts.backoff_s? Valid keys: {TOP}",
    ),
    "unknown_key_of_a_section_and_like_another": (
        "strict: true",
        f"2: unknown key strict; did you mean cache.strict? Valid keys: {TOP}",
    ),
    "unknown_key_like_none": ("zzz: 2", f"2: unknown key zzz. Valid keys: {TOP}"),
    "dotted_key": (
        "cache.location: /x",
        "2: unknown key 'cache.location'; nest it: cache: {location: ...}",
    ),
    "require_warm_without_a_cache": (
        "require_warm: true\ncache: {mode: 'off'}",
        "2: require_warm: needs a cache, and cache.mode is off; leave one of them out",
    ),
    "require_warm_where_not_all_is_stored": (
        "require_warm: true\ncache: {min_compile_time_s: 1.5}",
        "2: require_warm: needs every program in the cache, and cache.min_compile_time_s=1.5 "
        "keeps some out of it; set that to 0",
    ),
    "whole_number": ("workers: two", "2: workers: expected a whole number, got 'two'"),
    "fraction": ("workers: 1.5", "2: workers: expected a whole number, got '1.5'"),
    "nothing": ("workers:", "2: workers: expected a whole number, got nothing"),
    "mapping_for_number": ("workers: {a: 1}", "2: workers: expected a whole number, got a mapping"),
    "list_for_text": ("name: [a]", "2: name: expected text, got a list"),
    "number": ("timeouts: {stop_s: soon}", "2: timeouts.stop_s: expected a number, got 'soon'"),
    "boolean": ("cache: {strict: maybe}", "2: cache.strict: expected true or false, got 'maybe'"),
    "missing_mark": ("workers: '???'", "2: workers: expected a whole number, got '???'"),
    "text_for_list": ("args: --lr 1", "2: args: expected a list, got '--lr 1'"),
    "nothing_in_list": ("args: [a, null]", "2: args[1]: expected text, got nothing"),
    "list_for_mapping": ("env: [A]", "2: env: expected a mapping, got a list"),
    "text_for_section": (
        "cache: gs://bucket",
        f"2: cache: expected a mapping of {CACHE}; got 'gs://bucket'",
    ),
    "env_nothing": ("env:\n  A:", "3: env.A: expected text, got nothing"),
    "env_list": ("env:\n  A: [1]", "3: env.A: expected text, got a list"),
    "env_signing_keys": (
        "env:\n  HOTSTART_SIGNING_KEYS: hotstart-key-1-00",
        "3: env.HOTSTART_SIGNING_KEYS: a signing key is a host's own, and no job brings it; set "
        "the variable where Ray is started on each host, or cache.signing_key_file to a path there",
    ),
    "env_signing_key_file": (
        "env:\n  HOTSTART_SIGNING_KEY_FILE: /k",
        "3: env.HOTSTART_SIGNING_KEY_FILE: a signing key is a host's own, and no job brings it; "
        "set the variable where Ray is started on each host, or cache.signing_key_file to a path "
        "there",
    ),
    "signing_key_file_url": (
        "cache: {signing_key_file: gs://b/key}",
        "2: cache.signing_key_file: expected a file of each host, got 'gs://b/key'",
    ),
    "signing_key_file_empty": (
        "cache: {signing_key_file: ''}",
        "2: cache.signing_key_file: expected a file of each host, got ''",
    ),
    "resume_args_alone": (
        "resume: {args: [--resume]}",
        "2: resume.args: give resume.if_exists too: the checkpoint's path, without which they are "
        "left out",
    ),
    "resume_path_alone": (
        "resume: {if_exists: last.ckpt}",
        "2: resume.if_exists: give resume.args too: what the program gets where that path exists",
    ),
    "resume_url": (
        "resume: {if_exists: gs://b/last, args: [--resume]}",
        "2: resume.if_exists: expected a path of each host, got 'gs://b/last'",
    ),
    "resume_empty": (
        "resume: {if_exists: '', args: [--resume]}",
        "2: resume.if_exists: expected a path of each host, got ''",
    ),
    "env_name": (
        "env:\n  A=B: c",
        "3: env.A=B: not a name that an environment variable may have",
    ),
    "resource_text": (
        "resources_per_worker: {GPU: many}",
        "2: resources_per_worker.GPU: expected a number, got 'many'",
    ),
    "resource_negative": (
        "resources_per_worker: {GPU: -1}",
        "2: resources_per_worker.GPU: expected a finite number of at least 0, got -1.0",
    ),
    "workers_zero": ("workers: 0", "2: workers: expected a whole number of at least 1, got 0"),
    "workers_negative": (
        "workers: -2",
        "2: workers: expected a whole number of at least 1, got -2",
    ),
    "workers_huge": ("workers: 1000000000", "2: workers: expected at most 1000000, got 1000000000"),
    "per_host_zero": (
        "workers_per_host: 0",
        "2: workers_per_host: expected a whole number of at least 1, got 0",
    ),
    "per_host_uneven": (
        "workers: 4\nworkers_per_host: 3",
        "3: workers_per_host: 3 does not divide workers, which is 4",
    ),
    "failures_negative": (
        "restarts: {failures: -1}",
        "2: restarts.failures: expected a whole number of at least 0, got -1",
    ),
    "backoff_negative": (
        "restarts: {backoff_s: -0.5}",
        "2: restarts.backoff_s: expected a finite number of at least 0, got -0.5",
    ),
    "timeout_nan": (
        "timeouts: {stop_s: nan}",
        "2: timeouts.stop_s: expected a finite number of at least 0, got nan",
    ),
    "timeout_infinite": (
        "timeouts: {placement_s: inf}",
        "2: timeouts.placement_s: expected a finite number above 0, got inf",
    ),
    "timeout_zero": (
        "timeouts: {placement_s: 0}",
        "2: timeouts.placement_s: expected a finite number above 0, got 0.0",
    ),
    "platform": (
        "platform: gppu",
        "2: platform: unknown value 'gppu'; did you mean gpu? Valid values: cpu, gpu, tpu",
    ),
    "cache_mode": (
        "cache: {mode: readonly}",
        "2: cache.mode: unknown value 'readonly'; did you mean read-only? "
        "Valid values: read-write, read-only, off",
    ),
    "cache_compile": (
        "cache: {compile: onec}",
        "2: cache.compile: unknown value 'onec'; did you mean once? Valid values: once, every",
    ),
    "exit_code_too_high": (
        "restarts: {exit_codes: [75, 256]}",
        "2: restarts.exit_codes[1]: expected a whole number from 1 to 255, got 256",
    ),
    "exit_code_of_success": (
        "restarts: {exit_codes: [0]}",
        "2: restarts.exit_codes[0]: expected a whole number from 1 to 255, got 0",
    ),
    "exit_code_alone": (
        "restarts: {exit_codes: 75}",
        "2: restarts.exit_codes: expected a list, got '75'",
    ),
    "exit_code_by_name": (
        "restarts: {exit_codes: [EX_TEMPFAIL]}",
        "2: restarts.exit_codes[0]: expected a whole number, got 'EX_TEMPFAIL'",
    ),
    "refill_at_once": (
        "restarts: {refill_after_s: 0}",
        "2: restarts.refill_after_s: expected a finite number above 0, got 0.0",
    ),
    "standby": (
        "restarts: {standby: 2}",
        "2: restarts.standby: expected true or false, got '2'",
    ),
    "placement": (
        "placement: 7",
        "2: placement: unknown value '7'. Valid values: spread, pack",
    ),
    "jax_distributed": (
        "jax_distributed: scrip",
        "2: jax_distributed: unknown value 'scrip'; did you mean script? "
        "Valid values: launcher, script",
    ),
    "max_size": ("cache: {max_size: 5GG}", f"2: cache.max_size: {SIZE_RULE}, got '5GG'"),
    "max_size_zero": ("cache: {max_size: 0B}", f"2: cache.max_size: {SIZE_RULE}, got '0B'"),
    "cache_scheme": (
        "cache: {location: 's3://b/p'}",
        "2: cache.location: s3://b/p: unknown scheme s3://; give a directory or gs://bucket/prefix",
    ),
    "cache_bucket": (
        "cache: {location: 'gs://'}",
        "2: cache.location: gs://: no bucket name; give gs://bucket/prefix",
    ),
    "cache_slash": (
        "cache: {location: 'gs:/b/p'}",
        "2: cache.location: 'gs:/b/p' is not a URL; write gs://bucket/prefix",
    ),
    "node_dir_bucket": (
        "cache: {node_dir: 'gs://b'}",
        "2: cache.node_dir: expected a directory of the worker's host, got 'gs://b'",
    ),
    "run_dir_scheme": (
        "run_dir: s3://b",
        "2: run_dir: s3://b: unknown scheme s3://; give a directory or gs://bucket/prefix",
    ),
    "name_space": ("name: my job", f"2: name: 'my job' cannot name a folder; {NAME_RULE}"),
    "name_dots": ("name: ..", f"2: name: '..' cannot name a folder; {NAME_RULE}"),
    "name_long": (f"name: {'n' * 65}", f"2: name: '{'n' * 65}' cannot name a folder; {NAME_RULE}"),
    "duplicate": ("workers: 1\nworkers: 2", "3: workers is given twice, first on line 2"),
    "duplicate_in_section": (
        "cache:\n  mode: off\n  mode: off",
        "4: cache.mode is given twice, first on line 3",
    ),
    "unset_variable": (
        "name: ${oc.env:HOTSTART_TEST_UNSET}",
        "2: name: cannot resolve '${oc.env:HOTSTART_TEST_UNSET}': Environment variable "
        "'HOTSTART_TEST_UNSET' not found; write \\${...} for the text itself",
    ),
    "unknown_reference": (
        "name: ${nome}",
        "2: name: cannot resolve '${nome}': Interpolation key 'nome' not found; "
        "write \\${...} for the text itself",
    ),
    "reference_in_list": (
        "args: ['${nome}']",
        "2: args: cannot resolve '${nome}': Interpolation key 'nome' not found; "
        "write \\${...} for the text itself",
    ),
    "reference_in_mapping": (
        "env:\n  A: ${nome}",
        "3: env.A: cannot resolve '${nome}': Interpolation key 'nome' not found; "
        "write \\${...} for the text itself",
    ),
    "reference_of_another_type": (
        "workers: ${name}",
        "2: workers: expected a whole number, and '${name}' does not give that",
    ),
    "python_tag": (
        "name: !!python/name:os.system x",
        "2: name: the YAML tag 'tag:yaml.org,2002:python/name:os.system' is not allowed",
    ),
    "alias_loop": ("args: &a [*a]", "2: args.0: an alias that contains itself"),
    "surrogate": (
        'name: "\\ud800"',
        "2: name: '\\ud800' holds a character that no text may hold",
    ),
    "list_as_key": ("? [a]\n: b", "2: a key must be a plain word"),
    "merge_of_text": ("<<: text", "2: << takes a mapping or a list of mappings"),
    "syntax": ("args: [1\nname: x", "3: not valid YAML: expected ',' or ']', but got ':'"),
    "tab": ("\tname: x", "2: not valid YAML: found character '\\t' that cannot start any token"),
    "control_character": ("name: \x07", "2: not valid YAML: the character U+0007 is not allowed"),
    "two_documents": ("---\nname: x", "2: not valid YAML: but found another document"),
}


@pytest.mark.parametrize("case", BELOW_SCRIPT)
def test_load_job_bad_setting_names_key_file_and_line(folder: Path, case: str) -> None:
    text, expected = BELOW_SCRIPT[case]
    Path("job.yaml").write_text(f"script: train.py\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_job("job.yaml", environ={})
    error = caught.value
    assert str(error) == f"job.yaml:{expected}"
    assert (error.file, error.line) == ("job.yaml", int(expected.partition(":")[0]))
