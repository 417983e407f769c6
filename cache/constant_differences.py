"""Whether the numbers in two programs' code differ, beyond what other types bring about. Pure."""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction

from hotstart.cache.signature_differences import ChangeKind, Pair

CONSTANT = re.compile(
    r"^(?:% = )?(?:stablehlo\.)?constant dense<(-?[\d.]+(?:[eE][+-]?\d+)?|true|false)>"
)
_SINGLE = re.compile(r"(dense<)(-?[\d.]+(?:[eE][+-]?\d+)?)(> : tensor<(?:\d+x)*(f32|bf16|f16)>)")
_NUMBERS = 64  # different ones that are looked at
_SIZES = 200
# What JAX makes of a size: the size itself, a mean's divisor or factor, a last index, a scale.
_MADE: tuple[Callable[[float], float], ...] = (
    lambda size: size,
    lambda size: size - 1,
    lambda size: size + 1,
    lambda size: -size,
    lambda size: size / 2,
    math.sqrt,
    lambda size: 1 / size if size else 0.0,
    lambda size: 1 / (size - 1) if size > 1 else 0.0,
    lambda size: 1 / math.sqrt(size) if size else 0.0,
    lambda size: 2 / size if size else 0.0,
)


def constants_differ(
    gone: Counter[str],
    new: Counter[str],
    pairs: Sequence[Pair],
    signature: set[ChangeKind],
    axes: Collection[tuple[int, int]] = (),
) -> bool:
    """Whether numbers in the code have changed that are neither rounded nor made of a shape.

    `axes` are the sizes of a mesh before and after, by which shapes are divided.
    """
    was, now = Counter(constants_of(gone)), Counter(constants_of(new))
    was, now = was - now, now - was
    if "dtype" in signature:
        was, now = _unrounded(was, now)
    if signature & {"shape", "sharding"}:
        was, now = _not_made(was, now, _sizes(pairs, axes))
    return bool(was and now)


def constants_of(lines: Counter[str]) -> Iterator[float]:
    for line, count in lines.items():
        if match := CONSTANT.match(line):
            value = {"true": 1.0, "false": 0.0}.get(match[1])
            yield from itertools.repeat(float(match[1]) if value is None else value, count)


def with_plain_number(line: str) -> str:
    """With a number as it stands in the code: 0.95 for 0.949999988 of 32 bits."""
    return _SINGLE.sub(lambda m: f"{m[1]}{_shortest(float(m[2]), m[4])}{m[3]}", line)


def _stored(value: float, dtype: str) -> int | bytes:
    if dtype == "f16":
        return struct.pack("<e", value)
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    if dtype == "f32":
        return bits
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # the nearest, of ties the even one


def _shortest(value: float, dtype: str) -> str:
    try:
        stored = _stored(value, dtype)
        texts = (f"{value:.{digits}g}" for digits in range(1, 10))
        text = next(t for t in texts if _stored(float(t), dtype) == stored)
    except (OverflowError, StopIteration, struct.error):
        return str(value)
    return text if "." in text or "e" in text else f"{text}.0"


def _unrounded(was: Counter[float], now: Counter[float]) -> tuple[Counter[float], Counter[float]]:
    """Without numbers that differ by rounding alone; both are gone through once, in order."""
    left, kept = Counter(now), Counter(was)
    others = sorted(now)
    at = 0
    for value in sorted(was):
        while at < len(others) and others[at] < value and not _is_near(others[at], value):
            at += 1
        for index in range(at, len(others)):
            other = others[index]
            if not _is_near(other, value):
                break
            both = min(kept[value], left[other])
            kept[value] -= both
            left[other] -= both
            if not kept[value]:
                break
    limits = {v for v in (*+kept, *+left) if abs(v) > 1e4}  # of the dtype
    return +Counter({v: n for v, n in kept.items() if v not in limits}), +Counter(
        {v: n for v, n in left.items() if v not in limits}
    )


def _is_near(number: float, value: float) -> bool:
    return math.isclose(number, value, rel_tol=0.02)


def _not_made(
    was: Counter[float], now: Counter[float], sizes: set[tuple[int, int]]
) -> tuple[Counter[float], Counter[float]]:
    """Without numbers that are the same function of a size before and after."""
    if len(was) * len(now) > _NUMBERS**2:
        return was, now
    made = [(f(before), f(after)) for before, after in sorted(sizes)[:_SIZES] for f in _MADE]
    steps = {after - before for before, after in sizes}
    ratios = {Fraction(after, before) for before, after in sizes if before}
    for value in list(was):
        # Of what is made of several arguments, or lacks an end of one.
        whole = value.is_integer() and value > 1
        expected = [n for m, n in made if math.isclose(value, m, rel_tol=1e-2)]
        for other in [n for n in now if now[n]]:
            sized = whole and other.is_integer() and other > 1
            sized = sized and (
                int(other - value) in steps or Fraction(int(other), int(value)) in ratios
            )
            if sized or any(math.isclose(other, n, rel_tol=1e-2) for n in expected):
                del was[value], now[other]
                break
    return was, now


def _sizes(pairs: Sequence[Pair], axes: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Sizes that have changed, before and after: dimensions, and products and parts of them."""
    found = {*axes}
    for pair in pairs[:64]:
        dimensions = [
            (int(b), int(a))
            for b, a in itertools.zip_longest(
                pair.before.shape or (), pair.after.shape or (), fillvalue="1"
            )
            if b.isdigit() and a.isdigit()
        ]
        for count in range(1, min(len(dimensions), 6) + 1):
            for some in itertools.combinations(dimensions[:8], count):
                sizes = math.prod(b for b, _ in some), math.prod(a for _, a in some)
                found.add(sizes)
                found |= {(sizes[0] // parts[0], sizes[1] // parts[1]) for parts in axes}
    return {(was, now) for was, now in found if was != now}
