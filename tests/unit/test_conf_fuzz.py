"""Whatever is in a job file, `load_job` returns a job or raises `ConfigError` in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotstart.conf.errors import ConfigError
from hotstart.conf.load import job_from_yaml, job_to_yaml, load_job

pytestmark = pytest.mark.unit

TOP_KEYS = (
    *("name", "entrypoint", "script", "args", "workers", "workers_per_host", "placement"),
    *("resources_per_worker", "platform", "jax_distributed", "working_dir", "cache", "run_dir"),
    *("restarts", "env", "timeouts", "labels", "tpu"),
)
KEYS = (
    *TOP_KEYS,
    *("location", "mode", "strict", "max_size", "node_dir", "failures", "stop_s", "CPU", "<<"),
    *("min", "max", "topology", "generation", "workers_min"),
)
OVERRIDDEN = (
    *TOP_KEYS,
    *("cache.location", "cache.mode", "cache.strict", "cache.node_dir", "cache.max_size"),
    *("cache.deadline_s", "restarts.failures", "timeouts.stop_s", "env.A"),
    *("tpu.topology", "tpu.generation", "labels.zone", "workers.min"),
    "resources_per_worker.CPU",
)
FRAGMENTS = (
    *KEYS,
    *(": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "!!int ", "!x ", "#"),
    *("'", '"', "|\n  ", "\t", "---", "...", "\0", "\x85", "\u2028", "\ufeff", "é", "\\ud800"),
    *("${", "}", "${name}", "${oc.env:HOME}", "${oc.decode:'[1'}", "\\", "???", "9" * 5000),
    *("train.py", "train:main", "gs://b/p", "gpu", "off", "null", "1", "-1", "1e999", "nan"),
    *("2..8", "8..2", "tpu", "4x4", "v6e", "!a", "in(a,b)"),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(FRAGMENTS),
    st.text(max_size=20),
)
names = st.one_of(st.sampled_from(KEYS), st.text(max_size=8))
trees = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=6,
)
bounded = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def load_bytes(data: bytes, overrides: list[str], environ: dict[str, str]) -> None:
    """Load a job; a good one must survive the round trip, a bad one earns one line."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text("def main(): ...\n")
        path = Path(folder) / "job.yaml"
        path.write_bytes(data)
        try:
            job = load_job(path, overrides, environ)
        except ConfigError as error:
            message = str(error)
            assert len(message.splitlines()) == 1
            assert message.isprintable()
            return
        assert job_from_yaml(job_to_yaml(job.config)) == job.config


@bounded
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25))
def test_load_job_random_fragments_raise_only_config_errors(fragments: list[str]) -> None:
    text = "script: train.py\n" + "".join(fragments)
    load_bytes(text.encode("utf-8", "surrogatepass"), [], {})


@bounded
@given(st.binary(max_size=60))
def test_load_job_random_bytes_raise_only_config_errors(data: bytes) -> None:
    load_bytes(data, [], {})


@bounded
@given(trees)
def test_load_job_random_trees_raise_only_config_errors(tree: dict[str, Any]) -> None:
    text = yaml.safe_dump({"script": "train.py"} | tree)
    load_bytes(text.encode("utf-8", "surrogatepass"), [], {})


# One key at a time, so that most cases get past the first error of a whole tree.
@bounded
@given(
    st.sampled_from(OVERRIDDEN),
    st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=20)),
    st.booleans(),
)
def test_load_job_random_overrides_raise_only_config_errors(
    key: str, value: str, from_environment: bool
) -> None:
    if from_environment:
        variable = "HOTSTART_JOB__" + key.upper().replace(".", "__")
        load_bytes(b"script: train.py\n", [], {variable: value})
    else:
        load_bytes(b"script: train.py\n", [f"{key}={value}"], {})
