"""What is named as a cause, and what only follows; the real programs are in tests/explain."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest

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
    other = compare(described(settings={"jax_x": "1"}), described(changed, settings={"jax_x": "2"}))
    assert [c.kind for c in other.causes] == ["jax_config"]


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
    assert (found.known.key, found.considered) == ("k2", 3)
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
    assert found.causes[0].before == "in P('d', None), out P(None, None) over {d}"
    assert found.causes[0].after == "in P(None, 'd'), out P(None, None) over {d}"


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
    [(kind, says)] = named(described(text(body=BODY + convert)), described())
    assert kind == "code"
    assert says.endswith(
        ": a number of Python's (weakly typed) became an array, or the other way round"
    )
