"""What settings of JAX do to a program: whether one enters into it, and what it brings about. Pure.

JAX traces a function anew for another value of any setting of its trace context, whether or not its
program depends on it. Of the settings here it is known what they change, so what is left is the
code's; of others it is not. Measured by `tests/explain`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from hotstart.cache.program_text import ProgramText, operation_of

THREEFRY = "jax_threefry_partitionable"
PRNG = "jax_default_prng_impl"
X64 = "jax_enable_x64"
PRECISION = "jax_default_matmul_precision"
SHARDY = "jax_use_shardy_partitioner"

# A function is traced anew for another value of these, and its program is the same: checks, where
# it runs, and what goes into the compile options, whose own component shows it.
INERT = frozenset(
    {
        "jax_check_static_indices",
        "jax_debug_key_reuse",
        "jax_default_device",
        "jax_hlo_source_file_canonicalization_regex",
        "jax_memory_fitting_level",
        "jax_no_execution",
        "jax_numpy_dtype_promotion",  # "strict" raises, or does the same
        "jax_numpy_rank_promotion",
        "jax_optimization_level",
        "jax_pgle_profiling_runs",
        "jax_xla_profile_version",
    }
)

_PRECISION = re.compile(r", precision = \[[^\]]*\]")
_TYPE = re.compile(r"tensor<(?:[\d?]+x)*([^,>x]+)[^>]*>")
_WIDE = re.compile(r"\b(tensor<(?:[\d?]+x)*(?:f|i|ui|complex<f))64\b")
_FLOAT = re.compile(
    r"^(% = stablehlo\.constant dense<)(-?[\d.]+(?:[eE][+-]?\d+)?)(> : tensor<f32>)$"
)
_RANDOM = ("threefry", "rng_bit_generator", "_uniform", "_random_bits")
_FRAME = ("return", "stablehlo.return", "call", "func.call", "func.func", "stablehlo.while")

Lines = Counter[str]


def entering(names: Iterable[str], before: ProgramText, after: ProgramText) -> list[str]:
    """Of settings that differ, those that may have changed the program."""
    found = [name for name in names if name not in INERT]
    if before.lines is None or after.lines is None:
        return found
    was, now = Counter(before.lines), Counter(after.lines)
    gone, new = was - now, now - was
    return [
        name for name in found if name not in _ENTERS or _ENTERS[name](before, after, gone, new)
    ]


def without_effects(names: Collection[str], gone: Lines, new: Lines) -> tuple[Lines, Lines]:
    """What is left of lines that are gone and new without what these settings bring about."""
    if PRECISION in names:
        gone, new = _rest(*(_mapped(lines, without_precision) for lines in (gone, new)))
    if X64 in names:
        gone, new = _rest(*(_mapped(lines, _narrow) for lines in (gone, new)))
        gone, new = (_but(lines, _is_conversion) for lines in (gone, new))
    if {X64, THREEFRY, PRNG} & {*names}:
        gone, new = (_but(lines, _is_of_random_bits) for lines in (gone, new))
    if PRNG in names:
        gone, new = (_but(lines, _is_of_a_loop) for lines in (gone, new))
    if SHARDY in names:
        gone, new = (_but(lines, _is_notation) for lines in (gone, new))
    return gone, new


def is_known(name: str) -> bool:
    return name in _ENTERS


def without_precision(line: str) -> str:
    return _PRECISION.sub("", line)


def precisions(lines: Lines) -> Counter[tuple[str, str]]:
    """How often each operation asks for which precision."""
    found: Counter[tuple[str, str]] = Counter()
    for line, count in lines.items():
        if match := _PRECISION.search(line):
            found[operation_of(line), match[0]] += count
    return found


def _has_random(before: ProgramText, after: ProgramText, gone: Lines, new: Lines) -> bool:
    return any(word in line for line in (*gone, *new) for word in _RANDOM)


def _has_wide(before: ProgramText, after: ProgramText, gone: Lines, new: Lines) -> bool:
    """Whether there are more types of 64 bits, or fewer: attributes have some as well."""
    counts = [sum(n for line, n in lines.items() if _WIDE.search(line)) for lines in (gone, new)]
    return counts[0] != counts[1]


def _has_precision(before: ProgramText, after: ProgramText, gone: Lines, new: Lines) -> bool:
    return precisions(gone) != precisions(new)


def _has_other_notation(before: ProgramText, after: ProgramText, gone: Lines, new: Lines) -> bool:
    def notations(program: ProgramText) -> set[str]:
        values = (*program.arguments, *program.results)
        of_values = {name for value in values for name in value.attributes if "shard" in name}
        return of_values | {name for name in program.operations if name.startswith("sdy.")}

    return notations(before) != notations(after)


def _has_other_generator(before: ProgramText, after: ProgramText, gone: Lines, new: Lines) -> bool:
    """A program that has its keys from elsewhere goes on with the generator of those."""
    was, now = (
        {
            word
            for word in ("threefry", "rng_bit_generator")
            for line in p.lines or ()
            if word in line
        }
        for p in (before, after)
    )
    return was != now


_ENTERS: dict[str, Callable[[ProgramText, ProgramText, Lines, Lines], bool]] = {
    THREEFRY: _has_random,
    PRNG: _has_other_generator,
    X64: _has_wide,
    PRECISION: _has_precision,
    SHARDY: _has_other_notation,
}


def _types(line: str) -> set[str]:
    return {match[1] for match in _TYPE.finditer(line)}


def _is_of_random_bits(line: str) -> bool:
    """Whether it makes random bits, or turns them into numbers."""
    name, types = operation_of(line), _types(line)
    if any(word in line for word in (*_RANDOM, "@_normal", "@_shuffle", "@_randint")):
        return True
    if name in _FRAME:
        return bool(types & {"ui32", "ui64"})
    return bool(types) and (types <= {"ui32", "ui64"} or name == "stablehlo.bitcast_convert")


def _is_of_a_loop(line: str) -> bool:
    """Threefry has one in it, which counts in integers."""
    return bool(types := _types(line)) and types <= {"i1", "i32", "ui32"}


def _is_conversion(line: str) -> bool:
    return operation_of(line) == "stablehlo.convert"


def _is_notation(line: str) -> bool:
    name = operation_of(line)
    if name.startswith("sdy.") or "@shmap_body" in line:
        return True
    return bool(re.search(r"custom_call @(Sharding|SPMD)", line))


def _narrow(line: str) -> str:
    """In 32 bits, with numbers as those hold them."""
    line = _WIDE.sub(r"\g<1>32", line)
    match = _FLOAT.match(line)
    return f"{match[1]}{float(match[2]):.6g}{match[3]}" if match else line


def _mapped(lines: Lines, change: Callable[[str], str]) -> Lines:
    found: Lines = Counter()
    for line, count in lines.items():
        found[change(line)] += count
    return found


def _rest(gone: Lines, new: Lines) -> tuple[Lines, Lines]:
    return gone - new, new - gone


def _but(lines: Lines, drop: Callable[[str], bool]) -> Lines:
    return Counter({line: count for line, count in lines.items() if not drop(line)})
