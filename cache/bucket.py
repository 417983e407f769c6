"""What a cache's bucket should be like, in words and numbers: pure.

By JAX's guide (https://docs.jax.dev/en/latest/persistent_compilation_cache.html, "Google Cloud"):
region and project of the machines, no replication for small workloads, Standard class, soft
delete at its shortest, and entries that are deleted by age once the run's length has passed. The
guide's shortest soft delete is 7 days; by now it can be turned off, which is what is wanted here:
entries can be compiled again, and rotated checkpoints would be paid for a week longer.
What is wrong with a bucket: `bucket_check.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotstart.cache.lifecycle import Layout, Rule, days_of, entries_rule

ROLES: Mapping[str, tuple[str, ...]] = {  # each has the permissions of those before it
    "reader": ("storage.objects.get", "storage.objects.list"),
    "writer": ("storage.objects.create",),
    "repairer": ("storage.objects.delete",),
}
IAM_ROLES: Mapping[str, tuple[str, ...]] = {
    "reader": ("roles/storage.objectViewer",),
    "writer": ("roles/storage.objectViewer", "roles/storage.objectCreator"),
    "repairer": ("roles/storage.objectUser",),
}
PERMISSIONS = tuple(permission for role in ROLES.values() for permission in role)
SHORTEST_SOFT_DELETE_S = 7 * 86_400
LONGEST_SOFT_DELETE_S = 90 * 86_400


@dataclass(frozen=True)
class BucketFacts:
    """What a bucket is like.

    location_type: region, dual-region, multi-region or zone. soft_delete_s: 0 where it is off.
    retention_s: how long nothing in it may be deleted; 0 for no such policy. permissions: those of
    `PERMISSIONS` that this identity has; None where that can't be asked. in_project: whether it is
    in the project that is wanted; None where that is not known.
    """

    name: str
    location: str
    location_type: str
    storage_class: str
    soft_delete_s: int = 0
    uniform_access: bool = True
    public_access_prevented: bool = True
    versioned: bool = False
    autoclass: bool = False
    requester_pays: bool = False
    retention_s: int = 0
    retention_locked: bool = False
    rules: tuple[Rule, ...] = ()
    permissions: frozenset[str] | None = None
    in_project: bool | None = None
    metageneration: int = 0


@dataclass(frozen=True)
class Wanted:
    """What a bucket should be like; None is what isn't known, and is not looked at.

    prefix: of the cache in the bucket. location: a region, or what was asked for by name. project:
    an id or a number. role: what this identity is to do. run_length_s: how long the longest run
    takes, over all its restarts.
    """

    prefix: str
    run_length_s: float | None = None
    location: str | None = None
    project: str | None = None
    soft_delete_s: int = 0
    role: str = "writer"

    @property
    def layout(self) -> Layout:
        """Where things lie."""
        return Layout.of_cache(self.prefix)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    command: what a person can run to mend it. patch: what `--fix` sends of the bucket's resource;
    None where it can't be mended in place. others: what that changes for whoever else uses the
    bucket, so that it takes `--fix-all`; empty where it is about the cache's entries alone.
    """

    subject: str
    found: str
    wanted: str
    why: str
    command: str
    patch: Mapping[str, Any] | None = None
    others: str = ""


def facts_from(resource: Mapping[str, Any]) -> BucketFacts:
    """The facts in a bucket's resource, without `permissions` and `in_project`.

    https://cloud.google.com/storage/docs/json_api/v1/buckets
    """
    iam = resource.get("iamConfiguration", {})
    retention = resource.get("retentionPolicy", {})
    return BucketFacts(
        name=str(resource["name"]),
        location=str(resource.get("location", "")).lower(),
        location_type=str(resource.get("locationType", "")),
        storage_class=str(resource.get("storageClass", "STANDARD")),
        soft_delete_s=int(resource.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0)),
        uniform_access=bool(iam.get("uniformBucketLevelAccess", {}).get("enabled")),
        public_access_prevented=iam.get("publicAccessPrevention") == "enforced",
        versioned=bool(resource.get("versioning", {}).get("enabled")),
        autoclass=bool(resource.get("autoclass", {}).get("enabled")),
        requester_pays=bool(resource.get("billing", {}).get("requesterPays")),
        retention_s=int(retention.get("retentionPeriod", 0)),
        retention_locked=bool(retention.get("isLocked")),
        rules=tuple(resource.get("lifecycle", {}).get("rule", ())),
        metageneration=int(resource.get("metageneration", 0)),
    )


def new_bucket(name: str, location: str, wanted: Wanted) -> dict[str, Any]:
    """The resource of a bucket as it should be. `wanted.run_length_s` must be known."""
    if wanted.run_length_s is None:
        raise ValueError("a bucket is made for runs of a known length")
    return {
        "name": name,
        "location": location,
        "storageClass": "STANDARD",
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": True},
            "publicAccessPrevention": "enforced",
        },
        "softDeletePolicy": {"retentionDurationSeconds": str(wanted.soft_delete_s)},
        "lifecycle": {"rule": [entries_rule(wanted.layout, days_of(wanted.run_length_s))]},
    }


def not_looked_at(facts: BucketFacts, wanted: Wanted) -> list[str]:
    """What `check_bucket` could not judge, and what would let it."""
    said = []
    if wanted.location is None:
        said.append("the location: this is no Google Cloud machine; give --location REGION")
    if facts.in_project is None:
        said.append(
            "the project: this is no Google Cloud machine; give --project ID"
            if wanted.project is None
            else f"the project: this identity may not list the buckets of {wanted.project}"
        )
    if wanted.run_length_s is None:
        said.append("whether entries live as long as a run: give --run-length, as in 10d")
    if facts.permissions is None:
        said.append("permissions: the store does not tell them")
    return said


def role_of(permissions: Iterable[str]) -> str | None:
    """The most that an identity with these permissions can be: one of `ROLES`, or None."""
    has, role = set(permissions), None
    for name, needed in ROLES.items():
        if not has.issuperset(needed):
            break
        role = name
    return role


def patch_of(findings: Sequence[Finding], *, whole_bucket: bool) -> dict[str, Any]:
    """All patches in one; empty where nothing can be mended in place.

    Without `whole_bucket` those that change nothing for others.
    """
    merged: dict[str, Any] = {}
    own = [finding for finding in findings if not finding.others]
    # Last, for their rules are the whole bucket's.
    for finding in own + [f for f in findings if f.others and whole_bucket]:
        for key, value in (finding.patch or {}).items():
            known = merged.get(key)
            if isinstance(known, dict) and isinstance(value, Mapping):
                value = {**known, **value}
            merged[key] = value
    return merged
