from __future__ import annotations

import pytest

from hotstart.cache.program_text import Value, read_program

pytestmark = pytest.mark.unit

TEXT = """
module @jit_f attributes {mhlo.num_partitions = 2 : i32, mhlo.num_replicas = 1 : i32} {
  sdy.mesh @mesh = <["d"=2]> {stablehlo.mesh = {axes = []}}
  func.func public @main(%arg0: tensor<8x?xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"d"}, {}]>, tf.aliasing_output = 1 : i32}, %arg1: tensor<i32>, %arg2: tensor<2xcomplex<f32>>) -> (tensor<f32> {jax.result_info = "result['a, {b']"}, tensor<4xbf16>) {
    %0:2 = call @inner_3(%arg0) : (tensor<8x?xf32>) -> (tensor<f32>, tensor<4xbf16>)
    %cst = stablehlo.constant dense<2.000000e+00> : tensor<f32>
    %1 = stablehlo.add %0#0, %cst : tensor<f32>
    %2 = stablehlo.add %1, %cst : tensor<f32>
    return %2, %0#1 : tensor<f32>, tensor<4xbf16>
  }
}
"""  # noqa: E501


def test_program_text_gives_arguments_results_meshes_and_operations() -> None:
    program = read_program(TEXT, ["w", "step"])
    first, second, third = program.arguments
    assert (first.name, first.shape, first.dtype) == ("w", ("8", "?"), "f32")
    assert first.attributes == {
        "sdy.sharding": '#sdy.sharding<@mesh, [{"d"}, {}]>',
        "tf.aliasing_output": "1 : i32",
    }
    assert second == Value("tensor<i32>", {}, "step")
    assert (third.name, third.shape, third.dtype) == ("", ("2",), "complex<f32>")
    assert [r.type for r in program.results] == ["tensor<f32>", "tensor<4xbf16>"]
    assert program.results[0].attributes == {"jax.result_info": "\"result['a, {b']\""}
    assert program.meshes == {"mesh": '["d"=2]'}
    assert program.operations == {
        "call": 1,
        "stablehlo.constant": 1,
        "stablehlo.add": 2,
        "return": 1,
    }
    assert program.lines is not None
    assert program.lines["% = stablehlo.add %, % : tensor<f32>"] == 2
    assert program.lines["% = call @inner(%) : (tensor<8x?xf32>) -> (tensor<f32>, tensor<4xbf16>)"]


def test_program_text_with_renumbered_values_and_functions_reads_the_same() -> None:
    other = TEXT.replace("%cst", "%cst_7").replace("@inner_3", "@inner_12").replace("%2", "%9")
    assert read_program(other) == read_program(TEXT)


def test_program_text_of_something_else_is_empty() -> None:
    assert read_program("not MLIR (((").arguments == ()
