"""How two programs differ: arguments and results first, then what is left in their operations.

Pure. See `signature_differences.py` and `operation_differences.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from hotstart.cache.inner_shardings import inner_shardings, resizes
from hotstart.cache.operation_differences import code
from hotstart.cache.program_text import ProgramText
from hotstart.cache.setting_effects import PRNG, SHARDY, X64
from hotstart.cache.signature_differences import (
    Change,
    ChangeKind,
    Pair,
    donation,
    layouts,
    paired,
    results,
    shardings,
    types,
)

__all__ = ["Change", "ChangeKind", "compare_programs"]


def compare_programs(
    before: ProgramText,
    after: ProgramText,
    *,
    other_devices: bool = False,
    other_jax: bool = False,
    settings: Collection[str] = (),
) -> list[Change]:
    """What differs, causes first.

    Told that the number of devices differs, or JAX's version, or these `settings` of JAX that
    enter into the program: what then changes by itself only follows.
    """
    pairs, changes = paired(before.arguments, after.arguments)
    changes += [
        replace(change, follows=_is_by_setting(change, settings)) for change in types(pairs)
    ]
    changes += donation(pairs, before, after)
    other_notation = SHARDY in settings
    changes += shardings(pairs, before, after, other_devices, other_notation)
    changes += layouts(pairs)
    inner = list(inner_shardings(before, after, other_devices, follows=other_notation))
    changes += inner
    # With shard_map's specs changes what one device sees of an argument.
    local: set[ChangeKind] = {"shape"} if any(resizes(change) for change in inner) else set()
    signature = {change.kind for change in changes if not change.follows} | local
    by_others = other_devices or other_notation
    for change in results(before, after, signature, by_others):
        follows = change.follows or _is_by_setting(change, settings)
        changes.append(replace(change, follows=follows))
    signature = {change.kind for change in changes if not change.follows} | local
    if len(before.results) == len(after.results):
        both = zip(before.results, after.results, strict=True)
        pairs += [Pair(i, was, now) for i, (was, now) in enumerate(both)]
    changes += code(before, after, pairs, signature, other_devices, other_jax, settings)
    return sorted(changes, key=lambda change: change.follows)


def _is_by_setting(change: Change, settings: Collection[str]) -> bool:
    if change.kind == "shape":  # a random key has two numbers for threefry, and four for others
        return PRNG in settings and {change.before, change.after} == {"[2]", "[4]"}
    narrow = [(name or "").replace("64", "32") for name in (change.before, change.after)]
    return X64 in settings and change.kind == "dtype" and narrow[0] == narrow[1]
