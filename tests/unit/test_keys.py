"""Key components: the same in every process of a gang, others for what matters."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotstart.cache.keys import cpu_accelerator_digest, processor_identity

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class FakeDevice:
    process_index: int
    device_kind: str = "cpu"
    platform: str = "cpu"
    id: int = 0


def digest(*process_indices: int, kind: str = "cpu", processor: bytes = b"zen avx2") -> bytes:
    return cpu_accelerator_digest([FakeDevice(i, kind) for i in process_indices], processor)


def test_digest_of_the_same_devices_is_the_same_each_time():
    assert digest(0, 0, 1, 1) == digest(0, 0, 1, 1)


def test_digest_of_any_iterable_is_that_of_its_devices():
    devices = [FakeDevice(0), FakeDevice(1)]

    assert cpu_accelerator_digest(iter(devices), b"p") == cpu_accelerator_digest(devices, b"p")


def test_digest_of_a_local_program_does_not_depend_on_the_process():
    assert digest(0) == digest(1)


def test_digest_does_not_depend_on_device_ids_or_on_which_process_is_which():
    one = [FakeDevice(0, id=0), FakeDevice(1, id=2048)]
    other = [FakeDevice(4, id=7), FakeDevice(2, id=9)]

    assert cpu_accelerator_digest(one, b"p") == cpu_accelerator_digest(other, b"p")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(digest(0, 0, 1, 1, processor=b"zen avx512"), id="processor"),
        pytest.param(digest(0, 1), id="fewer devices"),
        pytest.param(digest(0, 0, 1, 1, 2, 2), id="more processes"),
        pytest.param(digest(0, 0, 0, 1), id="other shares"),
        pytest.param(digest(0, 0, 0, 0), id="one process"),
        pytest.param(digest(0, 1, 2, 3), id="one device a process"),
        pytest.param(digest(0, 0, 1, 1, kind="other"), id="kind"),
    ],
)
def test_digest_of_other_devices_or_processors_differs(other):
    assert digest(0, 0, 1, 1) != other


def test_digest_without_a_processor_is_that_of_this_host():
    device = FakeDevice(0)

    assert cpu_accelerator_digest([device]) == cpu_accelerator_digest(
        [device], processor_identity()
    )


def test_processor_identity_is_the_same_in_another_process():
    code = "from hotstart.cache.keys import processor_identity as p; print(p().hex())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )

    assert bytes.fromhex(done.stdout) == processor_identity()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_processor_identity_holds_model_and_features():
    lines = processor_identity().decode().splitlines()

    assert lines[0] == os.uname().machine
    assert max(len(line.split()) for line in lines) > 5
