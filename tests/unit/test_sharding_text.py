"""Shardings in JAX's own words."""

from __future__ import annotations

import pytest

from hotstart.cache.device_differences import placed_on
from hotstart.cache.sharding_text import readable, readable_mesh

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("shardy", "spec"),
    [
        ('<@mesh, [{"d"}, {}]>', "P('d', None)"),
        ('<@mesh, [{"d", "m"}]>', "P(('d', 'm'))"),
        ("<@mesh, []>", "P()"),
        ('<@mesh, [{"d"}]>, <@mesh, [{}]>', "P('d'), P(None)"),
        ('<@mesh, [{"d", ?}]>', '<@mesh, [{"d", ?}]>'),
        ('<@mesh, [{"d":(1)2}]>', '<@mesh, [{"d":(1)2}]>'),
        ('<@mesh, [{}], replicated={"d"}>', '<@mesh, [{}], replicated={"d"}>'),
        ("{devices=[2,1]<=[2]}", "{devices=[2,1]<=[2]}"),
    ],
)
def test_readable_writes_axes_as_a_partition_spec_and_leaves_the_rest(
    shardy: str, spec: str
) -> None:
    assert readable(shardy) == spec


def test_readable_mesh_names_axes_with_their_sizes() -> None:
    assert [readable_mesh(axes) for axes in ('["d"=2, "m"=4]', "[]")] == ["d=2, m=4", ""]


@pytest.mark.parametrize(
    ("assignment", "devices"),
    [
        ("080110041a030a01031a030a01021a030a01011a030a0100", "[3, 2, 1, 0]"),
        ("080210011a040a020001", "[0, 1]"),
        ("080110011a040a02ac02", "[300]"),
        ("0801", "[]"),
        ("not hex", "not hex"),
        ("1a05", "1a05"),
        (None, None),
    ],
)
def test_placed_on_reads_the_ids_and_leaves_what_is_no_assignment(
    assignment: str | None, devices: str | None
) -> None:
    assert placed_on(assignment) == devices
