"""What a start costs with many hosts: a model that carries measured costs further.

The formulas are in docs/scale.md, which `scale_page.py` fills with the figures. What the bench has
not measured is taken as assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_WRITES_PER_NAME_S = 1.0
_MEASURED: Mapping[str, tuple[str, str]] = {
    "stock_get_class_a": ("get_small", "theirs_class_a"),
    "stock_get_class_b": ("get_small", "theirs_class_b"),
    "stock_get_s": ("get_small", "theirs"),
    "stock_put_class_a": ("put_small", "theirs_class_a"),
    "stock_put_class_b": ("put_small", "theirs_class_b"),
    "get_s": ("get_small", "ours"),
    "claims_per_s": ("claims", "ours"),
}


@dataclass(frozen=True)
class Inputs:
    """One process a host. The defaults are assumed until the bench has measured them.

    stock_get_*, stock_put_*: requests and seconds of stock JAX for one entry through etils; a
        miss is a look without a read.
    get_s: one GET of a small entry at the bucket's round trip.
    cold_class_a, cold_class_b: hotstart's requests for one key that nobody has: look, lease,
        create, list and delete of the lease.
    claims_per_s: what the coordinator answers.
    reads_per_s, writes_per_s: a bucket's first limits; it scales up over minutes.
    parallel_reads: how many reads one agent has open at once.
    bucket_bytes_per_s: of one host with the bucket; link_bytes_per_s: of one host with another.
    usd_class_a, usd_class_b: list prices of one operation, Standard class, one region.
    """

    keys: int = 200
    entry_bytes: int = 5_000_000
    stock_get_class_a: float = 2
    stock_get_class_b: float = 3
    stock_get_s: float = 0.1
    stock_put_class_a: float = 3
    stock_put_class_b: float = 2
    stock_miss_class_a: float = 1
    stock_miss_class_b: float = 2
    get_s: float = 0.032
    cold_class_a: float = 3
    cold_class_b: float = 2
    claims_per_s: float = 5000
    reads_per_s: float = 5000
    writes_per_s: float = 1000
    parallel_reads: int = 64
    bucket_bytes_per_s: float = 200e6
    link_bytes_per_s: float = 1.25e9
    usd_class_a: float = 0.05 / 10_000
    usd_class_b: float = 0.004 / 10_000


@dataclass(frozen=True)
class Cost:
    """One start of all hosts, for its cache alone.

    reads_s, writes_s: the least time that the bucket's limits allow for either (lists are reads).
    claims_s: the least time that the coordinator needs. path_s: what a host has to wait for, one
    thing after another.
    """

    requests: float
    usd: float
    bucket_bytes: float
    reads_s: float
    writes_s: float
    claims_s: float
    path_s: float

    @property
    def start_s(self) -> float:
        """No start is faster; writes are in the background, or few."""
        return max(self.reads_s, self.claims_s, self.path_s)


def stock_warm(inputs: Inputs, hosts: int) -> Cost:
    """Every process reads every entry, one after another, on its main thread."""
    n = hosts * inputs.keys
    transfer_s = inputs.entry_bytes / inputs.bucket_bytes_per_s
    return _cost(
        inputs,
        lists=n * inputs.stock_get_class_a,
        reads=n * inputs.stock_get_class_b,
        bucket_bytes=n * inputs.entry_bytes,
        path_s=inputs.keys * (inputs.stock_get_s + transfer_s),
    )


def each_warm(inputs: Inputs, hosts: int) -> Cost:
    """`compile: every`: one GET an entry and process, on the thread that compiles."""
    n = hosts * inputs.keys
    transfer_s = inputs.entry_bytes / inputs.bucket_bytes_per_s
    return _cost(
        inputs,
        reads=n,
        bucket_bytes=n * inputs.entry_bytes,
        path_s=inputs.keys * (inputs.get_s + transfer_s),
    )


def hotstart_warm(inputs: Inputs, hosts: int) -> Cost:
    """One host reads each entry, ahead and in parallel; the others get it from their peers.

    Every host claims every key once. Handing on doubles the hosts that have an entry each time.
    """
    size_bytes = inputs.keys * inputs.entry_bytes
    read_s = max(
        math.ceil(inputs.keys / inputs.parallel_reads) * inputs.get_s,
        size_bytes / inputs.bucket_bytes_per_s,
    )
    spread_s = math.ceil(math.log2(hosts)) * size_bytes / inputs.link_bytes_per_s
    return _cost(
        inputs,
        claims=hosts * inputs.keys,
        lists=1,  # the manifest: found by a list, then read
        reads=inputs.keys + 1,
        bucket_bytes=size_bytes,
        path_s=read_s + spread_s,
    )


def stock_cold(inputs: Inputs, hosts: int) -> Cost:
    """Every process looks in vain and compiles; process 0 writes."""
    n, keys = hosts * inputs.keys, inputs.keys
    transfer_s = inputs.entry_bytes / inputs.bucket_bytes_per_s
    put_requests = inputs.stock_put_class_a + inputs.stock_put_class_b
    request_s = inputs.stock_get_s / (inputs.stock_get_class_a + inputs.stock_get_class_b)
    miss_requests = inputs.stock_miss_class_a + inputs.stock_miss_class_b
    return _cost(
        inputs,
        lists=n * inputs.stock_miss_class_a + keys * (inputs.stock_put_class_a - 1),
        reads=n * inputs.stock_miss_class_b + keys * inputs.stock_put_class_b,
        writes=keys,
        bucket_bytes=keys * inputs.entry_bytes,
        path_s=keys * (request_s * (miss_requests + put_requests) + transfer_s),
    )


def each_cold(inputs: Inputs, hosts: int) -> Cost:
    """`compile: every`: every process looks in vain, compiles, and tries to create the entry.

    One creates it; the others send theirs for nothing and look whose it is. A name takes one
    write a second, so most of these are slowed down by the bucket. In the background.
    """
    n = hosts * inputs.keys
    return replace(
        _cost(
            inputs,
            reads=2 * n - inputs.keys,
            writes=n,
            bucket_bytes=n * inputs.entry_bytes,
            path_s=inputs.keys * inputs.get_s,
        ),
        writes_s=max(n / inputs.writes_per_s, hosts / _WRITES_PER_NAME_S),
    )


def hotstart_cold(inputs: Inputs, hosts: int) -> Cost:
    """One host looks, takes the lease, compiles and creates; the others wait for it.

    Besides compiling, in order: the look, the lease, and handing it on. The upload is in the
    background.
    """
    keys, size_bytes = inputs.keys, inputs.keys * inputs.entry_bytes
    spread_s = math.ceil(math.log2(hosts)) * size_bytes / inputs.link_bytes_per_s
    return _cost(
        inputs,
        claims=hosts * keys,
        lists=keys,
        reads=keys * inputs.cold_class_b,
        writes=keys * (inputs.cold_class_a - 1),
        bucket_bytes=size_bytes,
        path_s=keys * 2 * inputs.get_s + spread_s,
    )


WAYS = (
    ("warm", "stock JAX", stock_warm),
    ("warm", "each for itself", each_warm),
    ("warm", "hotstart", hotstart_warm),
    ("cold", "stock JAX", stock_cold),
    ("cold", "each for itself", each_cold),
    ("cold", "hotstart", hotstart_cold),
)


def _cost(
    inputs: Inputs,
    *,
    lists: float = 0,
    reads: float = 0,
    writes: float = 0,
    claims: float = 0,
    bucket_bytes: float,
    path_s: float,
) -> Cost:
    return Cost(
        requests=lists + reads + writes,
        usd=(lists + writes) * inputs.usd_class_a + reads * inputs.usd_class_b,
        bucket_bytes=bucket_bytes,
        reads_s=(lists + reads) / inputs.reads_per_s,
        writes_s=writes / inputs.writes_per_s,
        claims_s=claims / inputs.claims_per_s,
        path_s=path_s,
    )


def inputs_from(rows: Sequence[Mapping[str, Any]]) -> tuple[Inputs, dict[str, str]]:
    """The inputs, and for each that was measured the row it is from."""
    by_slug = {row["slug"]: row for row in rows if not row.get("error")}
    found: dict[str, float] = {}
    source: dict[str, str] = {}
    for name, (slug, value) in _MEASURED.items():
        row = by_slug.get(slug, {})
        number = row.get(value, row.get("beside", {}).get(value))
        if number is not None:
            found[name], source[name] = float(number), slug
    cells = by_slug.get("growth", {}).get("beside", {}).get("cells", ())
    if cells:
        cell = max(cells, key=lambda cell: (cell["keys"], cell["workers"]))
        writes, keys = cell["cold_class_a"], cell["keys"]
        found["cold_class_a"] = round(writes / keys, 2)
        rest = cell["cold_requests"] - writes - cell["cold_deletes"]
        found["cold_class_b"] = round(rest / keys, 2)
        source |= {"cold_class_a": "growth", "cold_class_b": "growth"}
    return replace(Inputs(), **found), source  # type: ignore[arg-type]
