"""What is named as a cause, and what only follows; the real programs are in tests/explain."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
import zlib
from dataclasses import replace
from typing import Any

import pytest

from hotstart.cache.constant_differences import with_plain_number
from hotstart.cache.description import COMPONENTS, Description, from_text, to_text
from hotstart.cache.differences import compare
from hotstart.cache.explain import Known, nearest
from hotstart.cache.program_text import Value, read_program
from hotstart.cache.signature_differences import paired

pytestmark = pytest.mark.unit

MESH = '  sdy.mesh @mesh = <["d"=2]>\n'
BODY = """    %0 = stablehlo.tanh %arg0 : {type}
    %1 = stablehlo.constant dense<2.500000e+00> : tensor<f32>
"""


def text(
    first: str = "tensor<8x4xf32>",
    attributes: str = "",
    result: str = "tensor<8x4xf32>",
    body: str = BODY,
    mesh: str = "",
) -> str:
    arguments = f"%arg0: {first}{attributes}, %arg1: tensor<4xf32>"
    return (
        f"module @jit_f {{\n{mesh}  func.func public @main({arguments}) -> ({result}) {{\n"
        f"{body.format(type=first)}    return %0 : {result}\n  }}\n}}\n"
    )


def described(program: str | None = None, **parts: Any) -> Description:
    """With digests that differ where the parts do."""
    program = program if program is not None else text()
    made = Description(
        complete=True,
        versions={"jax": "0.10.2", "jaxlib": "0.10.2", "backend": "cpu", "backend version": "cpu"},
        devices={"platform": "cpu", "count": "2", "kinds": "2 x cpu", "all": "2", "share": "2"},
        options={"num_partitions": "2", "build.num_partitions": "2"},
        compression="zstandard",
        program=read_program(program, ["w", "b"]),
    )
    made = replace(made, **parts)
    values: tuple[Any, ...] = (
        program,
        made.versions["jaxlib"],
        made.versions["backend version"],
        made.flags,
        made.options,
        made.devices,
        made.compression,
        made.hook,
    )
    digests = [hashlib.sha256(repr(value).encode()).hexdigest() for value in values]
    return replace(made, digests=dict(zip(COMPONENTS, digests, strict=True)))


def named(before: Description, after: Description) -> list[tuple[str, str]]:
    return [(cause.kind, cause.text) for cause in compare(before, after).causes]


def test_compare_equal_keys_names_nothing() -> None:
    found = compare(described(), described())
    assert (found.components, found.causes, found.follows) == ((), (), ())


def test_compare_flags_names_each_with_both_values_and_where_it_is_set() -> None:
    before = described(flags={"XLA_FLAGS": ["--xla_a=1", "--xla_b"]})
    after = described(flags={"XLA_FLAGS": ["--xla_a=2"], "LIBTPU_INIT_ARGS": ["--xla_c=x"]})
    assert named(before, after) == [
        ("flag", "XLA_FLAGS: --xla_a is 2 and was 1"),
        ("flag", "XLA_FLAGS: --xla_b is not set and was on"),
        ("flag", "LIBTPU_INIT_ARGS: --xla_c is x and was not set"),
    ]


def test_compare_flag_that_shows_in_the_options_is_one_cause() -> None:
    after = described(
        flags={"XLA_FLAGS": ["--xla_a=2"]},
        options={**described().options, "debug.xla_a": "2", "build.x": "1"},
    )
    found = compare(described(), after)
    assert [(c.kind, c.subject) for c in found.causes] == [
        ("flag", "--xla_a"),
        ("compile_option", "build.x"),
    ]
    assert [c.subject for c in found.follows] == ["debug.xla_a"]


def test_compare_more_devices_takes_partitions_and_meshes_for_what_follows() -> None:
    sharded = ' {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>}'
    before = described(text(attributes=sharded, mesh=MESH))
    after = described(
        text(attributes=sharded, mesh=MESH.replace("=2", "=4")),
        devices={**before.devices, "count": "4", "kinds": "4 x cpu", "all": "4", "share": "4"},
        options={"num_partitions": "4", "build.num_partitions": "4"},
    )
    assert named(before, after) == [("devices", "the number of devices is 4 and was 2")]


@pytest.mark.parametrize(
    ("changed", "kind", "says"),
    [
        (
            text(first="tensor<8x4xbf16>"),
            "dtype",
            "the dtype of argument 0 (w) is bf16 and was f32",
        ),
        (
            text(first="tensor<16x4xf32>", result="tensor<16x4xf32>"),
            "shape",
            "the shape of argument 0 (w) is [16,4] and was [8,4]",
        ),
        (
            text(attributes=" {tf.aliasing_output = 0 : i32}"),
            "donation",
            "argument 0 (w) is donated and was not",
        ),
        (
            text(attributes=' {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>}', mesh=MESH),
            "sharding",
            "the sharding of argument 0 (w) is P('d', None) over d=2 and was none (uncommitted)",
        ),
        (
            text(attributes=" {sdy.sharding = #sdy.sharding<@mesh, [{}, {}]>}", mesh=MESH),
            "committed",
            "argument 0 (w) is committed (P(None, None) over d=2) and was uncommitted: "
            "restored arrays are committed, and so is what `device_put` or jit's `in_shardings` "
            "place",
        ),
        (
            text(result="tensor<9x4xf32>"),
            "shape",
            "the shape of result 0 is [9,4] and was [8,4], with the same arguments: by a static "
            "value, or by the code",
        ),
        (
            text(body=BODY.replace("tanh", "sine")),
            "code",
            "operations are new: `sine % : tensor<8x4xf32>`; operations are gone: "
            "`tanh % : tensor<8x4xf32>`",
        ),
    ],
)
def test_compare_programs_names_the_change_alone(changed: str, kind: str, says: str) -> None:
    assert named(described(), described(changed)) == [(kind, says)]


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (BODY, {"dtype"}),
        (BODY + "    %2 = stablehlo.convert %0 : (tensor<f32>) -> tensor<bf16>\n", {"dtype"}),
        (BODY.replace("2.500000e+00", "2.501000e+00"), {"dtype"}),
        (BODY.replace("2.500000e+00", "3.500000e+00"), {"dtype", "code"}),
        (BODY.replace("tanh", "sine"), {"dtype", "code"}),
    ],
)
def test_compare_other_dtype_names_code_only_for_what_no_dtype_changes(
    body: str, kinds: set[str]
) -> None:
    after = described(text(first="tensor<8x4xbf16>", body=body))
    assert {kind for kind, _ in named(described(), after)} == kinds


@pytest.mark.parametrize(
    ("value", "kinds"), [("6.400000e+01", {"shape"}), ("7.700000e+01", {"shape", "code"})]
)
def test_compare_other_shape_takes_a_constant_made_of_it_for_what_follows(
    value: str, kinds: set[str]
) -> None:
    before = described(text(body=BODY.replace("2.500000e+00", "3.200000e+01")))
    after = described(
        text(
            first="tensor<16x4xf32>",
            result="tensor<16x4xf32>",
            body=BODY.replace("2.500000e+00", value),
        )
    )
    if value.startswith("7"):
        before = described(text(body=BODY.replace("2.500000e+00", "3.300000e+02")))
    assert {kind for kind, _ in named(before, after)} == kinds


def test_compare_donation_that_lost_its_result_follows_from_the_dtype() -> None:
    before = described(text(attributes=" {tf.aliasing_output = 0 : i32}"))
    after = described(text(first="tensor<8x4xbf16>"))
    found = compare(before, after)
    assert [c.kind for c in found.causes] == ["dtype"]
    assert "donation" in [c.kind for c in found.follows]


def test_compare_component_that_differs_and_reads_the_same_is_unknown() -> None:
    after = described()
    after = replace(after, digests={**after.digests, "compile options": "other"})
    assert named(described(), after) == [
        ("unknown", "compile options differs, in what can't be read from what was recorded")
    ]


def test_compare_other_jaxlib_takes_other_defaults_for_what_follows() -> None:
    before = described()
    after = described(
        versions={**before.versions, "jaxlib": "0.11.0"},
        options={**before.options, "debug.xla_new": "true", "build.x": "1"},
    )
    found = compare(before, after)
    assert [c.subject for c in found.causes] == ["jaxlib", "build.x"]
    assert [c.subject for c in found.follows] == ["debug.xla_new"]


@pytest.mark.parametrize("name", ["jax_default_device", "jax_numpy_rank_promotion"])
def test_compare_setting_without_effect_on_programs_is_no_cause(name: str) -> None:
    before = described(settings={name: "1"})
    changed = text(body=BODY.replace("tanh", "sine"))
    [cause] = compare(before, described(changed, settings={name: "2"})).causes
    assert (cause.kind, cause.subject) == ("code", "the operations")


def test_compare_setting_of_unknown_effect_is_a_cause_beside_the_code() -> None:
    changed = text(body=BODY.replace("tanh", "sine"))
    before, after = described(settings={"jax_x": "1"}), described(changed, settings={"jax_x": "2"})
    assert named(before, after) == [
        ("jax_config", "jax_x is 2 and was 1"),
        (
            "code",
            "operations are new: `sine % : tensor<8x4xf32>`; operations are gone: "
            "`tanh % : tensor<8x4xf32>` (what of it is by jax_x does not show)",
        ),
    ]


def values(*types: str) -> list[Value]:
    return [Value(type) for type in types]


def test_paired_argument_among_many_of_alternating_types_is_the_only_new_one() -> None:
    before = values(*["f32", "bf16"] * 75)
    after = [*before[:50], *values("i32"), *before[50:]]
    pairs, [change] = paired(before, after)
    assert change.text == "the program takes 151 arguments and took 150; new: 50 (i32)"
    assert [p.position for p in pairs] == [*range(50), *range(51, 151)]
    assert all(p.before.type == p.after.type for p in pairs)


def test_paired_arguments_of_which_too_many_differ_are_counted_alone() -> None:
    rng = random.Random(1)
    drawn = [values(*rng.choices(["f32", "bf16", "i32"], k=k)) for k in (600, 601)]
    before, after = ([*values("a"), *found, *values("b", "c")] for found in drawn)
    pairs, [change] = paired(before, after)
    assert change.text == "the program takes 604 arguments and took 603"
    assert [p.after.type for p in pairs if p.after.type in "abc"] == ["a", "b", "c"]
    assert len(pairs) < 20


def test_description_survives_its_text_and_garbage_does_not() -> None:
    made = described(flags={"XLA_FLAGS": ["--xla_a"]})
    assert from_text(to_text(made)) == made
    for garbage in ("", "x", "eJw=", to_text(made)[:-9], "A" * 30_000):
        assert from_text(garbage) is None


def test_description_too_large_leaves_out_its_operations_first() -> None:
    rng = random.Random(1)
    lines = "".join(
        f"    %{i} = stablehlo.custom_call @f{rng.getrandbits(400):x}(%arg0)\n" for i in range(400)
    )
    short = from_text(to_text(described(text(body=lines))))
    assert short is not None
    assert short.program is not None
    assert short.program.lines is None
    assert len(short.program.arguments) == 2
    assert short.program.operations["stablehlo.custom_call"] == 400


def test_nearest_takes_fewest_components_then_fewest_things_then_the_latest() -> None:
    target = described(flags={"XLA_FLAGS": ["--xla_a"]})
    two_components = described(text(first="tensor<8x4xbf16>"))
    one_component, later = described(), described()
    known = [
        Known("k1", 1.0, "one", one_component),
        Known("k2", 2.0, "two", later),
        Known("k3", 3.0, "three", two_components),
        Known("k4", 4.0, "four", None),
    ]
    found = nearest(target, known)
    assert found is not None
    assert (found.known.key, found.considered, found.beside) == ("k2", 2, 1)
    beside = nearest(target, known, beside={"k2"})
    assert beside is not None
    assert beside.known.key == "k1"
    assert nearest(target, known[3:]) is None


def test_compare_flag_with_an_option_of_another_name_is_one_cause() -> None:
    before = described(options={**described().options, "debug.xla_cpu_scheduler_type": "MEMORY"})
    after = described(
        flags={"XLA_FLAGS": ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]},
        options={**described().options, "debug.xla_cpu_scheduler_type": "DEFAULT"},
    )
    found = compare(before, after)
    assert [c.kind for c in found.causes] == ["flag"]
    assert [c.subject for c in found.follows] == ["debug.xla_cpu_scheduler_type"]


def test_compare_flag_for_the_processor_is_the_cause_of_other_devices() -> None:
    before = described()
    after = described(flags={"XLA_FLAGS": ["--xla_cpu_max_isa=AVX2"]})
    after = replace(after, digests={**after.digests, "devices": "other"})
    found = compare(before, after)
    assert [c.subject for c in found.causes] == ["--xla_cpu_max_isa"]
    assert [c.text for c in found.follows] == [
        "what an executable may use of the processor differs, as --xla_cpu_max_isa says"
    ]


def test_compare_what_jax_sets_by_the_size_of_a_program_follows_from_it() -> None:
    half = text(first="tensor<8x4xf16>", result="tensor<8x4xf16>")
    options = {**described().options, "debug.xla_detailed_logging": "true"}
    found = compare(described(), described(half, options=options))
    assert [c.kind for c in found.causes] == ["dtype"]
    assert "debug.xla_detailed_logging" in [c.subject for c in found.follows]


def test_compare_other_partitioner_is_the_cause_of_shardings_in_its_language() -> None:
    shardy = ' {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>}'
    gspmd = ' {mhlo.sharding = "{devices=[2,1]<=[2]}"}'
    setting = "jax_use_shardy_partitioner"
    before = described(
        text(attributes=shardy, mesh=MESH),
        settings={setting: "True"},
        options={**described().options, "build.use_shardy_partitioner": "True"},
    )
    after = described(
        text(attributes=gspmd),
        settings={setting: "False"},
        options={**described().options, "build.use_shardy_partitioner": "False"},
    )
    found = compare(before, after)
    assert [(c.kind, c.subject) for c in found.causes] == [("jax_config", setting)]
    assert "build.use_shardy_partitioner" in [c.subject for c in found.follows]


MANUAL = """    %0 = sdy.manual_computation(%arg0) in_shardings=[<@mesh, [{{{spec}}}]>] \
out_shardings=[<@mesh, [{{}}, {{}}]>] manual_axes={{"d"}} (%arg2: {local}) {{
      %2 = stablehlo.tanh %arg2 : {local}
      sdy.return %2 : {local}
    }} : (tensor<8x4xf32>) -> {local}
"""


def manual(spec: str, local: str) -> str:
    body = MANUAL.format(spec=spec, local=local).replace("{", "{{").replace("}", "}}")
    return text(body=body, result=local, mesh=MESH)


def test_compare_specs_of_shard_map_are_the_cause_of_other_local_shapes() -> None:
    before = manual('{"d"}, {}', "tensor<4x4xf32>")
    after = manual('{}, {"d"}', "tensor<8x2xf32>")
    found = compare(described(before), described(after))
    assert [(c.kind, c.subject) for c in found.causes] == [("sharding", "shard_map")]
    assert found.causes[0].before == "in P('d', None), out P(None, None) over d=2"
    assert found.causes[0].after == "in P(None, 'd'), out P(None, None) over d=2"


def test_compare_results_that_change_places_are_code() -> None:
    def two(first: str, second: str, names: str) -> str:
        one, other = names
        results = (
            f'tensor<{first}> {{{{jax.result_info = "{one}"}}}}, '
            f'tensor<{second}> {{{{jax.result_info = "{other}"}}}}'
        )
        return text(result=results.replace("{{", "{").replace("}}", "}"))

    found = compare(described(two("f32", "7x5xf32", "ab")), described(two("7x5xf32", "f32", "bc")))
    assert {c.kind for c in found.causes} == {"code"}
    assert {c.kind for c in found.follows if c.subject.startswith("result")} == {"shape"}


def test_compare_number_that_became_an_array_is_a_shape_alone() -> None:
    convert = "    %2 = stablehlo.convert %arg0 : {type}\n"
    before = text(first="tensor<f32>", body=BODY + convert)
    after = text(first="tensor<6xf32>")
    assert [kind for kind, _ in named(described(before), described(after))] == ["shape"]


def test_compare_other_number_of_all_devices_is_named_where_the_program_uses_some() -> None:
    before = described()
    flags = ["--xla_force_host_platform_device_count=8"]
    after = described(devices={**before.devices, "all": "8"}, outside=flags)
    assert named(before, after) == [
        (
            "devices",
            "the number of all devices, of which the program uses some, is 8 and was 2 "
            "(--xla_force_host_platform_device_count=8)",
        )
    ]


def test_compare_operation_that_is_new_is_the_cause_of_a_result_of_another_shape() -> None:
    turned = BODY + "    %2 = stablehlo.transpose %0, dims = [1, 0] : tensor<4x8xf32>\n"
    found = compare(described(), described(text(body=turned, result="tensor<4x8xf32>")))
    assert [c.kind for c in found.causes] == ["code"]
    assert "transpose" in found.causes[0].text
    assert [c.text for c in found.follows] == ["the shape of result 0 is [4,8] and was [8,4]"]


def test_compare_other_devices_names_them_once_also_beside_a_sharding() -> None:
    forth = "080110021a030a01001a030a0101"  # devices 0 and 1
    back = "080110021a030a01011a030a0100"
    sharded = ' {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>}'
    turned = ' {sdy.sharding = #sdy.sharding<@mesh, [{}, {"d"}]>}'

    def placed(attributes: str, assignment: str) -> Description:
        options = {"device_assignment": assignment, "build.device_assignment": assignment}
        return described(text(attributes=attributes, mesh=MESH), options=options)

    assert named(placed(sharded, forth), placed(turned, back)) == [
        (
            "sharding",
            "the sharding of argument 0 (w) is P(None, 'd') over d=2 and was P('d', None) over d=2",
        ),
        ("devices", "the program runs on devices [1, 0] and ran on [0, 1]"),
    ]


def test_compare_setting_of_jax_that_shows_in_the_options_is_told_by_its_name() -> None:
    setting = "jax_optimization_level"
    before = described(settings={setting: "UNKNOWN"})
    after = described(
        settings={setting: "O1"},
        options={**described().options, "build.optimization_level": "19"},
    )
    assert named(before, after) == [
        ("jax_config", "jax_optimization_level is O1 and was UNKNOWN"),
    ]


def test_compare_number_of_pythons_that_became_an_array_says_so() -> None:
    convert = "    %2 = stablehlo.convert %arg0 : {type}\n"
    before = text(first="tensor<f32>", body=BODY + convert)
    assert named(described(before), described(text(first="tensor<f32>"))) == [
        ("dtype", "a number of Python's (weakly typed) became an array, or the other way round")
    ]


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("jax_threefry_partitionable", ("True", "False")),
        ("jax_numpy_dtype_promotion", ("standard", "strict")),
        ("jax_default_matmul_precision", ("None", "float32")),
        ("jax_enable_x64", ("False", "True")),
        ("jax_default_prng_impl", ("threefry2x32", "rbg")),
    ],
)
def test_compare_setting_that_does_not_enter_the_program_leaves_the_code_as_the_only_cause(
    setting: str, values: tuple[str, str]
) -> None:
    changed = text(body=BODY.replace("tanh", "sine"))
    before = described(settings={setting: values[0]})
    found = compare(before, described(changed, settings={setting: values[1]}))
    assert [(c.kind, c.subject) for c in found.causes] == [("code", "the operations")]
    assert found.follows == ()


BITS = """    %2 = stablehlo.iota dim = 0 : tensor<8xui32>
    %3 = call @threefry2x32(%2) : (tensor<8xui32>) -> tensor<8xui32>
"""
OTHER_BITS = """    %2 = stablehlo.iota dim = 0 : tensor<8xui64>
    %3 = stablehlo.shift_right_logical %2, %2 : tensor<8xui64>
    %4 = call @threefry2x32(%3) : (tensor<8xui64>) -> tensor<8xui32>
"""


def test_compare_setting_of_random_bits_is_the_cause_of_them_and_not_of_other_code() -> None:
    setting = "jax_threefry_partitionable"
    before = described(text(body=BODY + BITS), settings={setting: "False"})
    other = text(body=BODY + OTHER_BITS)
    found = compare(before, described(other, settings={setting: "True"}))
    assert [c.text for c in found.causes] == [f"{setting} is True and was False"]
    assert [c.text for c in found.follows] == [f"its operations differ as {setting} brings about"]
    both = described(other.replace("tanh", "sine"), settings={setting: "True"})
    assert named(before, both) == [
        ("jax_config", f"{setting} is True and was False"),
        (
            "code",
            "operations are new: `sine % : tensor<8x4xf32>`; operations are gone: "
            "`tanh % : tensor<8x4xf32>`",
        ),
    ]


def test_compare_other_generator_is_the_cause_of_keys_of_another_size() -> None:
    setting = "jax_default_prng_impl"
    before = described(
        text(first="tensor<2xui32>", body=BODY + BITS, result="tensor<f32>"),
        settings={setting: "threefry2x32"},
    )
    after = described(
        text(
            first="tensor<4xui32>",
            body=BODY + "    %2 = stablehlo.rng_bit_generator %arg0 : tensor<8xui32>\n",
            result="tensor<f32>",
        ),
        settings={setting: "rbg"},
    )
    found = compare(before, after)
    assert [c.text for c in found.causes] == [f"{setting} is rbg and was threefry2x32"]
    assert [c.kind for c in found.follows] == ["shape", "code"]


def test_compare_numbers_of_64_bits_are_the_cause_of_wider_operations() -> None:
    setting = "jax_enable_x64"
    wide = "tensor<8x4xf64>"
    body = BODY + "    %2 = stablehlo.convert %0 : (tensor<8x4xf32>) -> tensor<8x4xf64>\n"
    narrow = "    %3 = stablehlo.add %0, %0 : tensor<8x4xf32>\n"
    before = described(text(body=BODY + narrow), settings={setting: "False"})
    after = described(
        text(body=body + narrow.replace("f32", "f64"), result=wide), settings={setting: "True"}
    )
    found = compare(before, after)
    assert [c.text for c in found.causes] == [f"{setting} is True and was False"]
    assert [c.kind for c in found.follows] == ["dtype", "code"]


def test_compare_mesh_of_fewer_devices_of_the_same_is_a_cause() -> None:
    sharded = ' {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>}'
    devices = {**described().devices, "all": "4"}
    before = described(
        text(attributes=sharded, mesh=MESH.replace("=2", "=4")),
        devices={**devices, "count": "4", "kinds": "4 x cpu", "share": "4"},
        options={"num_partitions": "4", "build.num_partitions": "4"},
    )
    found = compare(before, described(text(attributes=sharded, mesh=MESH), devices=devices))
    assert [c.text for c in found.causes] == [
        "the sharding of argument 0 (w) is P('d', None) over d=2 and was P('d', None) over d=4"
    ]
    assert {c.kind for c in found.follows} == {"compile_option", "devices"}


def test_compare_names_a_cause_wherever_a_component_differs() -> None:
    """What only follows is a cause where there is nothing to follow from."""
    before = described(options={**described().options, "device_assignment": "08011002"})
    devices = {**before.devices, "count": "4"}
    other = ' {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>}'
    for after in (
        described(text(attributes=other, mesh=MESH)),
        described(text(mesh=MESH), devices=devices),
        described(devices=devices),
        described(text(result="tensor<9x4xf32>")),
    ):
        assert compare(before, after).causes


def test_compare_shard_map_over_other_types_keeps_its_specs() -> None:
    before = manual('{"d"}, {}', "tensor<4x4xf32>")
    after = manual('{"d"}, {}', "tensor<8x4xf32>").replace("%arg0: tensor<8x", "%arg0: tensor<16x")
    assert named(described(before), described(after)) == [
        ("shape", "the shape of argument 0 (w) is [16,4] and was [8,4]")
    ]


def test_compare_shard_map_over_another_mesh_names_its_sizes() -> None:
    before = manual('{"d"}, {}', "tensor<4x4xf32>")
    after = manual('{"d"}, {}', "tensor<2x4xf32>").replace('"d"=2', '"d"=4')
    assert [says for _, says in named(described(before), described(after))] == [
        "the sharding that shard_map asks for is in P('d', None), out P(None, None) over d=4 and "
        "was in P('d', None), out P(None, None) over d=2"
    ]


def test_compare_one_more_constraint_of_the_same_sharding_is_code() -> None:
    line = '    %9 = sdy.sharding_constraint %0 <@mesh, [{{"d"}}, {{}}]> : tensor<8x4xf32>\n'
    before = text(body=BODY + line, mesh=MESH)
    after = text(body=BODY + line * 2, mesh=MESH)
    assert [kind for kind, _ in named(described(before), described(after))] == ["code"]


def test_compare_axis_of_another_name_is_no_change_of_code() -> None:
    summed = '      %3 = stablehlo.all_reduce %2, axes = [#stablehlo.axis_ref<name = "d">]\n'
    before = manual('{"d"}, {}', "tensor<4x4xf32>").replace(
        "      sdy.return", f"{summed}sdy.return"
    )
    after = before.replace('"d"', '"m"')
    assert [c.kind for c in compare(described(before), described(after)).causes] == ["sharding"]


def test_compare_constant_beside_another_mesh_is_code() -> None:
    numbered = "      %3 = stablehlo.constant dense<{}> : tensor<f32>\nsdy.return"
    before = manual('{"d"}, {}', "tensor<4x4xf32>").replace(
        "sdy.return", numbered.format("2.000000e+00")
    )
    after = (
        manual('{"d"}, {}', "tensor<2x4xf32>")
        .replace("sdy.return", numbered.format("3.000000e+00"))
        .replace('"d"=2', '"d"=4')
    )
    found = compare(described(before), described(after))
    assert [c.kind for c in found.causes] == ["sharding", "code"]
    assert found.causes[1].text == (
        "operations are new: `constant dense<3.0> : tensor<f32>`; operations are gone: "
        "`constant dense<2.0> : tensor<f32>`"
    )


def test_compare_mean_over_another_mesh_follows_from_it() -> None:
    numbered = "      %3 = stablehlo.constant dense<{}> : tensor<f32>\nsdy.return"
    before = manual('{"d"}, {}', "tensor<4x4xf32>").replace(
        "sdy.return", numbered.format("2.000000e+00")
    )
    after = (
        manual('{"d"}, {}', "tensor<2x4xf32>")
        .replace("sdy.return", numbered.format("4.000000e+00"))
        .replace('"d"=2', '"d"=4')
    )
    found = compare(described(before), described(after))
    assert [c.kind for c in found.causes] == ["sharding"]


DOT = "    %2 = stablehlo.dot_general %0, %0, precision = [{p}, {p}] : tensor<8x4x{t}>\n"


def test_compare_precision_beside_a_dtype_is_code_for_no_dtype_brings_it_about() -> None:
    before = text(body=BODY + DOT.replace("{p}", "DEFAULT").replace("{t}", "f32"))
    half = text(
        first="tensor<8x4xbf16>",
        body=BODY + DOT.replace("{p}", "HIGHEST").replace("{t}", "bf16"),
    )
    assert named(described(before), described(half)) == [
        ("dtype", "the dtype of argument 0 (w) is bf16 and was f32"),
        (
            "code",
            "operations are new: `dot_general %, %, precision = [HIGHEST, HIGHEST] : "
            "tensor<8x4xbf16>`; operations are gone: `dot_general %, %, precision = "
            "[DEFAULT, DEFAULT] : tensor<8x4xf32>`",
        ),
    ]


def test_compare_setting_of_precision_is_a_cause_where_it_shows() -> None:
    setting = "jax_default_matmul_precision"
    dots = [text(body=BODY + DOT.replace("{p}", p).replace("{t}", "f32")) for p in ("A", "B")]
    before = described(dots[0], settings={setting: "None"})
    found = compare(before, described(dots[1], settings={setting: "float32"}))
    assert [c.kind for c in found.causes] == ["jax_config"]
    assert [c.text for c in found.follows] == [f"its operations differ as {setting} brings about"]


def test_compare_constant_of_another_kind_beside_a_dtype_is_code() -> None:
    table = "    %2 = stablehlo.constant dense_resource<__elided__> : tensor<4x6x{t}>\n"
    before = text(body=BODY + table.replace("{t}", "f32"))
    after = text(first="tensor<8x4xbf16>", body=BODY + table.replace("{t}", "i32"))
    assert [k for k, _ in named(described(before), described(after))] == ["dtype", "code"]


def test_compare_constant_that_changed_is_shown_first() -> None:
    numbers = "".join(f"    %9 = stablehlo.op{i} %0 : tensor<f32>\n" for i in range(9))
    after = text(body=BODY.replace("2.500000e+00", "5.000000e-02") + numbers)
    [(kind, says)] = named(described(), described(after))
    assert kind == "code"
    assert says.startswith("operations are new: `constant dense<0.05> : tensor<f32>`, `op0 % :")
    assert "and 4 more; operations are gone: `constant dense<2.5> : tensor<f32>`" in says


def test_compare_number_of_pythons_beside_other_code_is_told_apart() -> None:
    convert = "    %2 = stablehlo.convert %arg0 : tensor<f32>\n"
    before = text(body=BODY + convert)
    after = text(body=BODY.replace("tanh", "sine"))
    assert named(described(before), described(after)) == [
        ("dtype", "a number of Python's (weakly typed) became an array, or the other way round"),
        (
            "code",
            "operations are new: `sine % : tensor<8x4xf32>`; operations are gone: "
            "`tanh % : tensor<8x4xf32>`",
        ),
    ]


def test_compare_results_that_are_new_and_gone_are_named() -> None:
    def made(*names: str) -> str:
        results = ", ".join(f'tensor<f32> {{jax.result_info = "{name}"}}' for name in names)
        return text(result=f"({results})").replace("-> ((", "-> (").replace(")) {", ") {")

    found = compare(described(made("a", "b", "z")), described(made("b", "c")))
    assert [c.text for c in found.causes] == [
        "the program has 2 results and had 3; new: c; gone: a, z"
    ]


def test_compare_static_value_is_code_and_the_shape_of_a_result_follows() -> None:
    numbered = "    %2 = stablehlo.constant dense<{}> : tensor<i32>\n"
    before = text(body=BODY + numbered.replace("{}", "5"), result="tensor<5xf32>")
    after = text(body=BODY + numbered.replace("{}", "9"), result="tensor<9xf32>")
    found = compare(described(before), described(after))
    assert [c.text for c in found.causes] == [
        "operations are new: `constant dense<9> : tensor<i32>`; operations are gone: "
        "`constant dense<5> : tensor<i32>`"
    ]
    assert [c.text for c in found.follows] == ["the shape of result 0 is [9] and was [5]"]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (None, "False", "is False and was not set"),
        ("True", "False", "is False and was True"),
        ("0", None, "is not set and was 0"),
    ],
)
def test_compare_compiler_options_of_no_value_are_named_with_it(
    before: str | None, after: str | None, says: str
) -> None:
    def with_option(value: str | None) -> Description:
        options = dict(described().options)
        if value is not None:
            options["override.xla_x"] = value
        return replace(described(options=options), session="s")

    assert named(with_option(before), with_option(after)) == [
        ("compile_option", f"compile option xla_x {says} in `jit(compiler_options=...)`")
    ]


def test_compare_with_an_older_description_names_no_option_that_it_could_not_have() -> None:
    before = described()
    options = {**before.options, "override.xla_x": "False", "build.x": "1"}
    after = replace(described(options=options), session="s")
    assert [c.subject for c in compare(before, after).causes] == ["build.x"]


def shaped(rows: int, session: str = "", **parts: Any) -> Description:
    program = text(first=f"tensor<{rows}x4xf32>", result=f"tensor<{rows}x4xf32>")
    return replace(described(program, **parts), session=session)


def test_nearest_sets_aside_what_the_same_process_made() -> None:
    flags = {"XLA_FLAGS": ["--xla_a"]}
    target = shaped(16, "new", flags=flags, options={"x": "1"})
    known = [
        Known("k1", 1.0, "one", shaped(8, "old")),
        Known("k2", 2.0, "two", shaped(16, "old")),
        Known("k3", 3.0, "three", shaped(8, "new", flags=flags, options={"x": "1"})),
    ]
    found = nearest(target, known, session="new")
    assert found is not None
    assert (found.known.key, found.considered, found.beside) == ("k2", 1, 2)
    assert found.choice == (
        "it is the only earlier key of this module of which that is known; 2 more are set aside, "
        "of the same process or attempt or with other arguments"
    )
    alone = nearest(target, known[2:], session="new")
    assert alone is not None
    assert alone.known.key == "k3"


def test_nearest_takes_the_same_program_for_earlier_than_one_with_other_arguments() -> None:
    """Also where the others were made by another process of the same start."""
    flags = {"XLA_FLAGS": ["--xla_a"]}
    target = shaped(16, flags=flags, options={"x": "1"})
    known = [
        Known("k1", 1.0, "one", shaped(16)),
        Known("k2", 2.0, "two", shaped(8, flags=flags, options={"x": "1"})),
    ]
    found = nearest(target, known)
    assert found is not None
    assert found.known.key == "k1"


def test_known_without_a_session_goes_by_its_writer_and_its_flags() -> None:
    one = Known("k", 1.0, "w", shaped(8), "host/7")
    assert one.session == replace(one, description=shaped(16)).session
    flagged = replace(one, description=shaped(8, flags={"XLA_FLAGS": ["--xla_a"]}))
    assert one.session != flagged.session
    assert replace(one, writer="").session == ""


def test_compare_typed_random_key_is_a_dtype_and_no_code() -> None:
    typed = "    %9 = sdy.sharding_constraint %arg0 <@empty_mesh, [{{}}]> : tensor<2xui32>\n"
    before, after = text(first="tensor<2xui32>"), text(first="tensor<2xui32>", body=BODY + typed)
    assert named(described(before), described(after)) == [
        (
            "dtype",
            "a random key is typed (`jax.random.key`) and was an array of numbers (`PRNGKey`), or "
            "the other way round",
        )
    ]


def test_compare_memory_of_a_result_follows_from_that_of_an_argument() -> None:
    placed = ' {mhlo.memory_kind = "pinned_host"}'
    result = '(tensor<8x4xf32> {mhlo.memory_kind = "device"})'
    after = text(attributes=placed, result=result).replace("-> ((", "-> (").replace(")) {", ") {")
    found = compare(described(), described(after))
    assert [c.text for c in found.causes] == [
        'mhlo.memory_kind of argument 0 (w) is "pinned_host" and was not set'
    ]
    assert [c.text for c in found.follows] == [
        'mhlo.memory_kind of result 0 is "device" and was not set'
    ]


@pytest.mark.parametrize(
    ("printed", "dtype", "plain"),
    [
        ("0.949999988", "f32", "0.95"),
        ("5.004880e-02", "bf16", "0.05"),
        ("8.984370e-01", "bf16", "0.9"),
        ("9.997560e-02", "f16", "0.1"),
        ("2.000000e+00", "bf16", "2.0"),
        ("3.400000e+38", "f16", "3.4e+38"),
    ],
)
def test_number_is_shown_as_it_stands_in_the_code(printed: str, dtype: str, plain: str) -> None:
    line = f"constant dense<{printed}> : tensor<{dtype}>"
    assert with_plain_number(line) == f"constant dense<{plain}> : tensor<{dtype}>"


@pytest.mark.parametrize("count", [1e999, -1, 10**12])
def test_description_with_impossible_counts_is_none(count: float) -> None:
    form = json.loads(zlib.decompress(base64.b64decode(to_text(described()))))
    form["program"]["operations"]["stablehlo.tanh"] = count
    assert from_text(base64.b64encode(zlib.compress(json.dumps(form).encode())).decode()) is None


def test_compare_of_many_numbers_and_arguments_is_no_work() -> None:
    """Each of 64 numbers against each, and against what each size gives, took seconds."""
    numbers = "".join(
        f"    %{i + 3} = stablehlo.constant dense<{i}.123> : tensor<f32>\n" for i in range(60)
    )
    moved = numbers.replace(".123", ".456")
    before = text(body=BODY + numbers)
    after = text(first="tensor<24x12xf32>", result="tensor<24x12xf32>", body=BODY + moved)
    started = time.process_time()
    assert "shape" in [kind for kind, _ in named(described(before), described(after))]
    assert time.process_time() - started < 1.0
