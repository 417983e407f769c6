"""Key components: the same in every process of a gang, others for what matters."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hotstart.cache.keys import (
    compile_once_flags,
    cpu_accelerator_digest,
    identity_from,
    local_ranks,
    process_independent_options,
    processor_identity,
    turns_autotuning_off,
)

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


X86 = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 1
model name	: AMD EPYC 7B13
cpu MHz		: 2449.998
flags		: {flags}

processor	: 1
flags		: of another processor
"""


def x86(flags: str, cpuinfo: str = X86) -> bytes:
    return identity_from("x86_64", cpuinfo.format(flags=flags))


def test_identity_does_not_depend_on_the_order_of_flags_or_the_clock_rate():
    assert x86("avx avx2 sse4_2") == x86("sse4_2 avx2 avx", X86.replace("2449.998", "3000.1"))


def test_identity_does_not_depend_on_flags_that_only_kernels_use():
    assert x86("avx2 hypervisor cpuid smep") == x86("avx2")


@pytest.mark.parametrize("flag", ["avx512f", "fma", "bmi2", "sse4_1", "amx_tile", "vpclmulqdq"])
def test_identity_with_another_flag_for_code_differs(flag):
    assert x86("avx2") != x86(f"avx2 {flag}")


def test_identity_of_another_model_differs():
    assert x86("avx2") != x86("avx2", X86.replace("model\t\t: 1", "model\t\t: 17"))


def test_identity_of_an_arm_processor_holds_its_part_and_features():
    cpuinfo = "processor: 0\nFeatures: fp asimd sve\nCPU part: 0xd40\n"

    assert identity_from("aarch64", cpuinfo) == b"aarch64\nasimd fp sve\nCPU part: 0xd40"


def cpus(*ids: int, platform: str = "cpu") -> list[FakeDevice]:
    return [FakeDevice(i // 2048, id=i, platform=platform) for i in ids]


@pytest.mark.parametrize(
    ("program", "local", "ranks"),
    [
        pytest.param(cpus(0), cpus(0, 1), [0], id="first of two"),
        pytest.param(cpus(2049), cpus(2048, 2049), [1], id="second of two"),
        pytest.param(cpus(2048, 2049), cpus(2048, 2049), [0, 1], id="in order"),
        pytest.param(cpus(2049, 2048), cpus(2048, 2049), [1, 0], id="reversed"),
        pytest.param(cpus(2049), cpus(2049, 2048), [1], id="rank goes by id"),
        pytest.param(cpus(0, 2048), cpus(0, 1), None, id="a peer takes part"),
        pytest.param(cpus(2048), cpus(0, 1), None, id="of a peer alone"),
        pytest.param(cpus(0, platform="gpu"), cpus(0, platform="gpu"), None, id="gpu"),
        pytest.param([], cpus(0), None, id="no device"),
    ],
)
def test_local_ranks_are_those_among_the_own_cpus(program, local, ranks):
    assert local_ranks(program, local) == ranks


@dataclass(frozen=True)
class FakeAssignment:
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def create(cls, ids: np.ndarray) -> FakeAssignment:
        return cls(tuple(map(tuple, ids.tolist())))

    def replica_count(self) -> int:
        return len(self.ids)

    def computation_count(self) -> int:
        return len(self.ids[0])

    def serialize(self) -> bytes:
        return repr(self.ids).encode()


@dataclass
class FakeOptions:
    device_assignment: FakeAssignment | None


@dataclass(frozen=True)
class FakeBackend:
    devices: list[FakeDevice]
    platform: str = "cpu"

    def local_devices(self) -> list[FakeDevice]:
        return self.devices


@pytest.mark.parametrize(
    ("assignment", "ranks"),
    [
        pytest.param(((2049,),), ((1,),), id="one device"),
        pytest.param(((2048, 2049),), ((0, 1),), id="partitions"),
        pytest.param(((2049, 2048),), ((1, 0),), id="permuted partitions"),
        pytest.param(((2048,), (2049,)), ((0,), (1,)), id="replicas"),
    ],
)
def test_options_of_a_local_program_hold_ranks_and_the_given_ones_stay(assignment, ranks):
    options = FakeOptions(FakeAssignment(assignment))
    devices = cpus(*(i for row in assignment for i in row))

    independent = process_independent_options(options, devices, FakeBackend(cpus(2048, 2049)))

    assert independent == FakeOptions(FakeAssignment(ranks))
    assert options == FakeOptions(FakeAssignment(assignment))


@pytest.mark.parametrize(
    ("assignment", "devices", "platform"),
    [
        pytest.param(FakeAssignment(((0, 2048),)), cpus(0, 2048), "cpu", id="global"),
        pytest.param(FakeAssignment(((2048,),)), cpus(2048), "gpu", id="gpu"),
        pytest.param(None, cpus(2048), "cpu", id="no assignment"),
        pytest.param(FakeAssignment(((2049,),)), cpus(2048), "cpu", id="of other devices"),
        pytest.param(FakeAssignment(((2048,),)), cpus(2048, 2049), "cpu", id="of fewer devices"),
    ],
)
def test_options_of_other_programs_come_back_as_they_are(assignment, devices, platform):
    options = FakeOptions(assignment)
    backend = FakeBackend(cpus(2048, 2049), platform)

    assert process_independent_options(options, devices, backend) is options


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ("", "--xla_gpu_shard_autotuning=false"),
        ("--a=1", "--a=1 --xla_gpu_shard_autotuning=false"),
        ("--xla_gpu_shard_autotuning=true", "--xla_gpu_shard_autotuning=true"),
        ("--a=1 --xla_gpu_shard_autotuning", "--a=1 --xla_gpu_shard_autotuning"),
        ("--xla_gpu_shard_autotuning=false --a=1", "--xla_gpu_shard_autotuning=false --a=1"),
    ],
)  # fmt: skip
def test_compile_once_flags_turn_sharded_autotuning_off_unless_it_is_set(given, flags):
    assert compile_once_flags(given) == flags


@pytest.mark.parametrize(
    ("flags", "off"),
    [
        ("", False),
        ("--xla_gpu_shard_autotuning", False),
        ("--xla_gpu_shard_autotuning=true", False),
        ("--xla_gpu_shard_autotuning=false", True),
        ("--a=1 --xla_gpu_shard_autotuning=true --xla_gpu_shard_autotuning=0", True),
        (compile_once_flags("--a=1"), True),
    ],
)
def test_turns_autotuning_off_is_what_the_last_setting_says(flags, off):
    assert turns_autotuning_off(flags) is off
