"""Entries with what their heads and pins say of them, as lists and counts need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotstart.cache.entry import Head
    from hotstart.cache.inventory import Listed
    from hotstart.cache.store import Store


@dataclass(frozen=True)
class Row:
    """One object among the entries. `head` is None where it was not read, a text where it can't."""

    listed: Listed
    head: Head | str | None
    pins: tuple[str, ...]

    def meta(self, name: str) -> str:
        """A text of the entry's own meta; empty where it isn't known."""
        return (
            "" if self.head is None or isinstance(self.head, str) else getattr(self.head.meta, name)
        )

    @property
    def compile_s(self) -> float | None:
        """What compiling it took, where that is known."""
        return None if self.head is None or isinstance(self.head, str) else self.head.meta.compile_s

    @property
    def version(self) -> str:
        """The JAX that compiled it, and its jaxlib where that is another."""
        jax, jaxlib = self.meta("jax"), self.meta("jaxlib")
        return jax if jaxlib in ("", jax) else f"{jax} (jaxlib {jaxlib})"


def rows_of(store: Store, found: Sequence[Listed], *, reads: bool) -> list[Row]:
    """The rows, by one listing of pins; with `reads` one request an entry for its head too.

    What is gone by then is left out. Raises `StoreError`.
    """
    from hotstart.cache.eviction import pin_folder
    from hotstart.cache.pins import list_pins

    pins = list_pins(store)
    heads = _with_heads(store, found) if reads else ((one, None) for one in found)
    return [Row(one, head, tuple(pins.get(pin_folder(one.stat.name), ()))) for one, head in heads]


def _with_heads(
    store: Store, found: Sequence[Listed]
) -> Iterable[tuple[Listed, Head | str | None]]:
    """With their heads; those that are gone by now are left out."""
    from hotstart.cache.heads import in_order, read_head
    from hotstart.launcher.progress_bar import counted

    heads = in_order(lambda one: read_head(store, one.stat), found, threads=16)
    for one, head in counted(zip(found, heads, strict=True), "reading", len(found)):
        if head is not None:
            yield one, head
