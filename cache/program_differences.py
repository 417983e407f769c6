"""How two programs differ: arguments and results first, then what is left in their operations.

Pure. See `signature_differences.py` and `operation_differences.py`.
"""

from __future__ import annotations

from collections.abc import Collection

from hotstart.cache.operation_differences import (
    PLAIN_SETTINGS,
    code,
    inner_shardings,
    without_precision,
)
from hotstart.cache.program_text import ProgramText
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
    enter into tracing: what then changes by itself only follows.
    """
    pairs, changes = paired(before.arguments, after.arguments)
    changes += types(pairs)
    changes += donation(pairs, before, after)
    other_notation = "jax_use_shardy_partitioner" in settings
    changes += shardings(pairs, before, after, other_devices, other_notation)
    changes += layouts(pairs)
    inner = list(inner_shardings(before, after, follows=other_notation))
    changes += inner
    # With shard_map's specs changes what one device sees of an argument.
    local: set[ChangeKind] = {"shape"} if inner else set()
    signature = {change.kind for change in changes if not change.follows} | local
    changes += results(before, after, signature, other_devices or other_notation)
    signature = {change.kind for change in changes if not change.follows} | local
    other_tracing = other_jax or bool({*settings} - PLAIN_SETTINGS)
    if {*settings} & PLAIN_SETTINGS and before.lines != after.lines:
        before, after = without_precision(before), without_precision(after)
        if before.lines == after.lines:
            text = "the precision of its operations differs"
            changes.append(Change("code", "the operations", None, None, text, follows=True))
            return sorted(changes, key=lambda change: change.follows)
    if len(before.results) == len(after.results):
        both = zip(before.results, after.results, strict=True)
        pairs += [Pair(i, was, now) for i, (was, now) in enumerate(both)]
    changes += code(before, after, pairs, signature, other_devices, other_tracing)
    return sorted(changes, key=lambda change: change.follows)
