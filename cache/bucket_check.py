"""What is not as it should be with a cache's bucket, why, and what mends it: pure.

Beside what JAX's guide asks for (`bucket.py`) a cache relies on this: nobody else writes what every
reader runs, and nothing keeps an object from being made, replaced or deleted.
"""

from __future__ import annotations

from collections.abc import Iterator

from hotstart.cache.bucket import IAM_ROLES, ROLES, BucketFacts, Finding, Wanted, role_of
from hotstart.cache.lifecycle import (
    class_change_of,
    days_of,
    deletions,
    mended_rules,
    shortest_age,
    shown_days,
)

_WITHOUT = {
    "storage.objects.get": "a host that can't read compiles everything",
    "storage.objects.list": "a host that can't list finds no manifest, and reads nothing ahead",
    "storage.objects.create": "what a host that can't write has compiled is of use to nobody else",
    "storage.objects.delete": "bad entries, ended leases and old beats stay where they are",
}


def check_bucket(facts: BucketFacts, wanted: Wanted) -> list[Finding]:
    """All that is not as it should be, the worst first."""
    return [
        *_permissions(facts, wanted),
        *_lifecycle(facts, wanted),
        *_settings(facts, wanted),
        *_place(facts, wanted),
    ]


def _permissions(facts: BucketFacts, wanted: Wanted) -> Iterator[Finding]:
    if facts.permissions is None:
        return
    needed: list[str] = []
    for role, permissions in ROLES.items():
        needed += permissions
        if role == wanted.role:
            break
    lacking = [permission for permission in needed if permission not in facts.permissions]
    if lacking:
        is_reader = role_of(facts.permissions) is not None
        roles = IAM_ROLES[wanted.role][1 if is_reader and wanted.role == "writer" else 0 :]
        binding = f"gcloud storage buckets add-iam-policy-binding gs://{facts.name}"
        yield Finding(
            "permissions",
            f"this identity is {_called(role_of(facts.permissions))}; it lacks "
            f"{', '.join(lacking)}",
            f"a {wanted.role}: {', '.join(IAM_ROLES[wanted.role])}",
            _WITHOUT[lacking[0]],
            " && ".join(f"{binding} --member=MEMBER --role={role}" for role in roles),
        )


def _called(role: str | None) -> str:
    return f"a {role}" if role else "not even a reader"


def _lifecycle(facts: BucketFacts, wanted: Wanted) -> Iterator[Finding]:
    layout, length_s = wanted.layout, wanted.run_length_s
    found = deletions(facts.rules)
    own, whole = (
        {"lifecycle": {"rule": mended_rules(facts.rules, layout, length_s, whole_bucket=all_of_it)}}
        for all_of_it in (False, True)
    )
    options = "" if length_s is None else f" --run-length {days_of(length_s)}d"
    if wanted.soft_delete_s:
        options += f" --soft-delete {wanted.soft_delete_s // 86_400}d"
    where = f"gs://{facts.name}" + (f"/{wanted.prefix}" if wanted.prefix else " --prefix ''")
    command = f"hotstart bucket check {where}{options} --fix"
    should = f"Delete by age under {layout.entries} alone"
    days = None if length_s is None else days_of(length_s)
    if days is not None:
        should += f", after {shown_days(days)} or more"
    others = "what that rule deletes elsewhere stays, until another rule deletes it"
    wide = [d for d in found if d.catches_more_than(layout)]
    for deletion in wide:
        caught = ", ".join(one or "everything" for one in deletion.prefixes)
        yield Finding(
            "lifecycle",
            f"{caught} is deleted after {shown_days(deletion.age_days)}",
            should,
            "entries can be compiled again; manifests, run records, checkpoints and logs can't",
            f"{command}-all",
            whole,
            others,
        )
    age_days = shortest_age(facts.rules, layout.entries)
    if age_days is not None and days is not None and age_days < days:
        left_days = shortest_age(own["lifecycle"]["rule"], layout.entries)
        is_own = left_days is not None and left_days >= days
        yield Finding(
            "lifecycle",
            f"entries are deleted after {shown_days(age_days)}",
            should,
            f"a restart late in a run of {shown_days(days)} would compile again",
            command if is_own else f"{command}-all",
            own if is_own else whole,
            "" if is_own else others,
        )
    if not any(deletion.covers(layout.entries) for deletion in found):
        unknown = length_s is None
        yield Finding(
            "lifecycle",
            "no rule deletes entries",
            should,
            "entries of old programs and versions stay for ever, and are paid for",
            command.replace(" --fix", " --run-length 10d --fix") if unknown else command,
            None if unknown else own,
        )
    for rule in facts.rules:
        change = class_change_of(rule)
        if change is not None and change[0] != "STANDARD" and change[1].catches(layout.entries):
            yield Finding(
                "lifecycle",
                f"entries become {change[0]} after {shown_days(change[1].age_days)}",
                "Standard for as long as they live",
                "every read of another class is charged, and so is deleting it early",
                f"gcloud storage buckets update gs://{facts.name} --lifecycle-file=FILE, with "
                "that rule off the entries' prefix",
            )


def _settings(facts: BucketFacts, wanted: Wanted) -> Iterator[Finding]:
    update = f"gcloud storage buckets update gs://{facts.name}"
    if facts.requester_pays:
        yield Finding(
            "requester pays",
            "on",
            "off",
            "requests that name no project to charge are refused, and hotstart's name none",
            f"{update} --no-requester-pays",
            {"billing": {"requesterPays": False}},
            "the bucket's project pays for what others read",
        )
    if facts.retention_s:
        yield Finding(
            "retention policy",
            f"nothing can be deleted for {facts.retention_s} s",
            "none",
            "bad entries, ended leases and old beats could not be taken away",
            "hotstart bucket create gs://OTHER: the policy is locked"
            if facts.retention_locked
            else f"{update} --clear-retention-period",
        )
    if not facts.uniform_access:
        yield Finding(
            "uniform bucket-level access",
            "off",
            "on",
            "an object's own access list can let others write what every reader runs",
            f"{update} --uniform-bucket-level-access",
            {"iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}}},
            "who reads or writes by an object's own access list can't any more",
        )
    if not facts.public_access_prevented:
        yield Finding(
            "public access prevention",
            "not enforced",
            "enforced",
            "one wrong role for allUsers, and the world reads or writes what every reader runs",
            f"{update} --public-access-prevention",
            {"iamConfiguration": {"publicAccessPrevention": "enforced"}},
            "who reads anything in it as the public can't any more",
        )
    if facts.autoclass:
        yield Finding(
            "autoclass",
            "on",
            "off",
            "it charges for each object, and moves what wasn't read for a month",
            f"{update} --no-enable-autoclass",
            {"autoclass": {"enabled": False}},
            "their objects stay in the class that they have",
        )
    if facts.storage_class != "STANDARD":
        yield Finding(
            "storage class",
            facts.storage_class,
            "STANDARD",
            "every read of another class is charged, and so is deleting it early; what is stored "
            "already keeps its class",
            f"{update} --default-storage-class=STANDARD",
            {"storageClass": "STANDARD"},
            "their new objects are Standard too",
        )
    if facts.versioned:
        yield Finding(
            "versioning",
            "on",
            "off",
            "what is deleted, by age too, stays as a noncurrent version and is paid for",
            f"{update} --no-versioning",
            {"versioning": {"enabled": False}},
            "what they overwrite or delete can't be brought back",
        )
    if facts.soft_delete_s > wanted.soft_delete_s:
        shown = _shown_soft_delete(wanted.soft_delete_s)
        yield Finding(
            "soft delete",
            _shown_soft_delete(facts.soft_delete_s),
            shown,
            "what is deleted, rotated checkpoints too, is paid for that long; to keep it on at its "
            "shortest: --soft-delete 7d",
            f"{update} --clear-soft-delete"
            if not wanted.soft_delete_s
            else f"{update} --soft-delete-duration={wanted.soft_delete_s}s",
            {"softDeletePolicy": {"retentionDurationSeconds": str(wanted.soft_delete_s)}},
            "what they delete can't be brought back"
            + (f" after {shown}" if wanted.soft_delete_s else ""),
        )


def _shown_soft_delete(seconds: int) -> str:
    return shown_days(seconds // 86_400) if seconds else "off"


def _place(facts: BucketFacts, wanted: Wanted) -> Iterator[Finding]:
    anew = "hotstart bucket create gs://OTHER"
    if facts.in_project is False:
        yield Finding(
            "project",
            f"not {wanted.project}",
            str(wanted.project),
            "the machines' own roles, quota and bill should go for it; a bucket stays in its "
            "project, and a new cache fills by itself",
            f"{anew} --project {wanted.project}",
        )
    if wanted.location is not None and facts.location != wanted.location.lower():
        yield Finding(
            "location",
            f"{facts.location} ({facts.location_type})",
            wanted.location.lower(),
            "every start reads from another place than its own: slower, and charged as traffic "
            "between regions; a new bucket is the least work, for a cache fills by itself",
            f"{anew} --location {wanted.location.lower()}",
        )
    elif wanted.location is None and facts.location_type != "region":
        yield Finding(
            "replication",
            f"{facts.location} ({facts.location_type})",
            "the one region of the machines",
            "a small workload pays for copies that it never reads; where replication is wanted, "
            f"say so: --location {facts.location}",
            f"{anew} --location REGION",
        )
