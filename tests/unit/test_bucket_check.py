"""Every finding about a bucket: what is, what should be, and what mends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hotstart.cache.bucket import (
    PERMISSIONS,
    BucketFacts,
    Finding,
    Wanted,
    facts_from,
    new_bucket,
    not_looked_at,
    patch_of,
    role_of,
)
from hotstart.cache.bucket_check import check_bucket
from hotstart.cache.lifecycle import Layout, entries_rule

pytestmark = pytest.mark.unit

DAY_S = 86_400
LAYOUT = Layout.of_cache("cache")
WANTED = Wanted("cache", 10.0 * DAY_S, location="us-central1", project="jobs")
GOOD = BucketFacts(
    name="b",
    location="us-central1",
    location_type="region",
    storage_class="STANDARD",
    rules=(entries_rule(LAYOUT, 10),),
    permissions=frozenset(PERMISSIONS),
    in_project=True,
)
UPDATE = "gcloud storage buckets update gs://b"


def only(facts: BucketFacts, wanted: Wanted = WANTED) -> Finding:
    (finding,) = check_bucket(facts, wanted)
    return finding


def test_bucket_as_it_is_made_has_no_finding() -> None:
    resource = new_bucket("b", "us-central1", WANTED) | {"locationType": "region"}
    facts = replace(facts_from(resource), permissions=frozenset(PERMISSIONS), in_project=True)
    assert facts == GOOD
    assert check_bucket(facts, WANTED) == []
    assert not_looked_at(facts, WANTED) == []


@pytest.mark.parametrize(
    ("change", "subject", "found", "should", "command", "patch"),
    [
        ({"requester_pays": True}, "requester pays", "on", "off",
         f"{UPDATE} --no-requester-pays", {"billing": {"requesterPays": False}}),
        ({"retention_s": 3600}, "retention policy", "nothing can be deleted for 3600 s", "none",
         f"{UPDATE} --clear-retention-period", None),
        ({"retention_s": 3600, "retention_locked": True}, "retention policy",
         "nothing can be deleted for 3600 s", "none",
         "hotstart bucket create gs://OTHER: the policy is locked", None),
        ({"uniform_access": False}, "uniform bucket-level access", "off", "on",
         f"{UPDATE} --uniform-bucket-level-access",
         {"iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}}}),
        ({"public_access_prevented": False}, "public access prevention", "not enforced",
         "enforced", f"{UPDATE} --public-access-prevention",
         {"iamConfiguration": {"publicAccessPrevention": "enforced"}}),
        ({"autoclass": True}, "autoclass", "on", "off", f"{UPDATE} --no-enable-autoclass",
         {"autoclass": {"enabled": False}}),
        ({"storage_class": "NEARLINE"}, "storage class", "NEARLINE", "STANDARD",
         f"{UPDATE} --default-storage-class=STANDARD", {"storageClass": "STANDARD"}),
        ({"versioned": True}, "versioning", "on", "off", f"{UPDATE} --no-versioning",
         {"versioning": {"enabled": False}}),
        ({"soft_delete_s": 7 * DAY_S}, "soft delete", "7 days", "off",
         f"{UPDATE} --clear-soft-delete",
         {"softDeletePolicy": {"retentionDurationSeconds": "0"}}),
        ({"in_project": False}, "project", "not jobs", "jobs",
         "hotstart bucket create gs://OTHER --project jobs", None),
        ({"location": "europe-west4"}, "location", "europe-west4 (region)", "us-central1",
         "hotstart bucket create gs://OTHER --location us-central1", None),
        ({"location": "us", "location_type": "multi-region"}, "location", "us (multi-region)",
         "us-central1", "hotstart bucket create gs://OTHER --location us-central1", None),
    ],
)  # fmt: skip
def test_each_setting_that_is_wrong_is_one_finding(
    change: dict[str, Any], subject: str, found: str, should: str, command: str, patch: Any
) -> None:
    finding = only(replace(GOOD, **change))
    assert (finding.subject, finding.found, finding.wanted) == (subject, found, should)
    assert (finding.command, finding.patch) == (command, patch)
    assert finding.why
    assert bool(finding.others) is (patch is not None)


def test_replication_is_a_finding_where_the_region_is_not_known() -> None:
    dual = replace(GOOD, location="nam4", location_type="dual-region")
    finding = only(dual, replace(WANTED, location=None))
    assert (finding.subject, finding.found) == ("replication", "nam4 (dual-region)")
    assert finding.patch is None
    assert check_bucket(dual, replace(WANTED, location="NAM4")) == []


def test_soft_delete_at_its_shortest_is_right_where_it_is_wanted() -> None:
    week = replace(WANTED, soft_delete_s=7 * DAY_S)
    assert check_bucket(replace(GOOD, soft_delete_s=7 * DAY_S), week) == []
    finding = only(replace(GOOD, soft_delete_s=30 * DAY_S), week)
    assert (finding.found, finding.wanted) == ("30 days", "7 days")
    assert finding.command == f"{UPDATE} --soft-delete-duration=604800s"
    assert finding.patch == {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}


def rules(*given: tuple[int, list[str] | None]) -> BucketFacts:
    return replace(
        GOOD,
        rules=tuple(
            {
                "action": {"type": "Delete"},
                "condition": {"age": age} | ({"matchesPrefix": where} if where else {}),
            }
            for age, where in given
        ),
    )


MENDED = {"lifecycle": {"rule": [entries_rule(LAYOUT, 10)]}}


def test_missing_rule_is_a_finding() -> None:
    finding = only(rules())
    assert (finding.subject, finding.found) == ("lifecycle", "no rule deletes entries")
    assert finding.wanted == "Delete by age under cache/entries/ alone, after 10 days or more"
    assert finding.command == "hotstart bucket check gs://b/cache --run-length 10d --fix"
    assert finding.patch == MENDED


def test_missing_rule_needs_a_length_to_be_mended() -> None:
    finding = only(rules(), replace(WANTED, run_length_s=None))
    assert finding.wanted == "Delete by age under cache/entries/ alone"
    assert finding.command == "hotstart bucket check gs://b/cache --run-length 10d --fix"
    assert finding.patch is None


def test_command_that_mends_keeps_the_soft_delete_that_is_wanted() -> None:
    finding = only(rules(), replace(WANTED, soft_delete_s=7 * DAY_S))
    assert finding.command == (
        "hotstart bucket check gs://b/cache --run-length 10d --soft-delete 7d --fix"
    )


def test_rule_shorter_than_the_run_is_a_finding() -> None:
    finding = only(rules((9, ["cache/entries/"])))
    assert finding.found == "entries are deleted after 9 days"
    assert finding.why == "a restart late in a run of 10 days would compile again"
    assert finding.patch == MENDED


@pytest.mark.parametrize(("age", "length_s"), [(10, 10.0 * DAY_S), (11, 10.0 * DAY_S), (2, 1.0)])
def test_rule_as_long_as_the_run_or_longer_is_right(age: int, length_s: float) -> None:
    facts = rules((age, ["cache/entries/"]))
    assert check_bucket(facts, replace(WANTED, run_length_s=length_s)) == []


def test_rule_for_the_whole_bucket_is_a_finding_that_says_what_it_takes() -> None:
    finding = only(rules((10, None)))
    assert finding.found == "everything is deleted after 10 days"
    assert "checkpoints" in finding.why
    assert finding.patch == MENDED
    assert finding.others == "what that rule deletes elsewhere stays, until another rule deletes it"
    assert finding.command.endswith(" --fix-all")


def test_rule_for_runs_is_a_finding_beside_the_right_one() -> None:
    finding = only(rules((10, ["cache/entries/"]), (90, ["runs/"])))
    assert finding.found == "runs/ is deleted after 90 days"
    assert finding.patch == MENDED
    assert finding.others


def test_entries_that_a_rule_of_others_deletes_too_early_take_a_change_for_others() -> None:
    _, early = check_bucket(rules((5, None)), WANTED)
    assert (early.found, early.patch) == ("entries are deleted after 5 days", MENDED)
    assert early.others and early.command.endswith(" --fix-all")
    wide, own = check_bucket(rules((30, ["runs/"]), (5, ["cache/entries/"])), WANTED)
    assert (own.found, own.others) == ("entries are deleted after 5 days", "")
    kept = rules((30, ["runs/"])).rules
    assert patch_of([wide, own], whole_bucket=False) == {
        "lifecycle": {"rule": [*kept, entries_rule(LAYOUT, 10)]}
    }
    assert patch_of([wide, own], whole_bucket=True) == MENDED


def test_rule_that_changes_the_class_of_entries_is_a_finding_that_is_left_to_a_person() -> None:
    action = {"type": "SetStorageClass", "storageClass": "COLDLINE"}
    rule = {"action": action, "condition": {"age": 30}}
    finding = only(replace(GOOD, rules=(*GOOD.rules, rule)))
    assert finding.found == "entries become COLDLINE after 30 days"
    assert finding.patch is None


@pytest.mark.parametrize(
    ("permissions", "role"),
    [
        ((), None),
        (("storage.objects.get",), None),
        (PERMISSIONS[:2], "reader"),
        (PERMISSIONS[:3], "writer"),
        (PERMISSIONS, "repairer"),
        (("storage.objects.create", "storage.objects.delete"), None),
    ],
)
def test_role_is_the_most_that_the_permissions_allow(
    permissions: tuple[str, ...], role: str | None
) -> None:
    assert role_of(permissions) == role


@pytest.mark.parametrize(
    ("permissions", "role", "found", "roles"),
    [
        (PERMISSIONS[:2], "writer", "this identity is a reader; it lacks storage.objects.create",
         ["objectCreator"]),
        ((), "writer", "this identity is not even a reader; it lacks storage.objects.get, "
         "storage.objects.list, storage.objects.create", ["objectViewer", "objectCreator"]),
        (PERMISSIONS[:3], "repairer", "this identity is a writer; it lacks storage.objects.delete",
         ["objectUser"]),
        ((), "reader", "this identity is not even a reader; it lacks storage.objects.get, "
         "storage.objects.list", ["objectViewer"]),
    ],
)  # fmt: skip
def test_lacking_permissions_are_a_finding_with_the_roles_that_give_them(
    permissions: tuple[str, ...], role: str, found: str, roles: list[str]
) -> None:
    facts = replace(GOOD, permissions=frozenset(permissions))
    finding = only(facts, replace(WANTED, role=role))
    assert (finding.found, finding.patch) == (found, None)
    assert finding.command == " && ".join(
        "gcloud storage buckets add-iam-policy-binding gs://b --member=MEMBER "
        f"--role=roles/storage.{name}"
        for name in roles
    )


def test_more_permissions_than_needed_are_no_finding() -> None:
    assert check_bucket(GOOD, replace(WANTED, role="reader")) == []


def test_patches_of_several_findings_are_one() -> None:
    bad = replace(
        GOOD, uniform_access=False, public_access_prevented=False, soft_delete_s=DAY_S, rules=()
    )
    assert patch_of(check_bucket(bad, WANTED), whole_bucket=False) == MENDED
    assert patch_of(check_bucket(bad, WANTED), whole_bucket=True) == {
        **MENDED,
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": True},
            "publicAccessPrevention": "enforced",
        },
        "softDeletePolicy": {"retentionDurationSeconds": "0"},
    }
    assert patch_of([], whole_bucket=True) == {}


def test_what_is_not_known_is_not_judged_and_said() -> None:
    unknown = replace(GOOD, permissions=None, in_project=None)
    nothing = Wanted("cache")
    assert check_bucket(unknown, nothing) == []
    assert not_looked_at(unknown, nothing) == [
        "the location: this is no Google Cloud machine; give --location REGION",
        "the project: this is no Google Cloud machine; give --project ID",
        "whether entries live as long as a run: give --run-length, as in 10d",
        "permissions: the store does not tell them",
    ]
    assert "may not list the buckets of jobs" in not_looked_at(unknown, WANTED)[0]


def test_new_bucket_of_an_unknown_run_length_is_refused() -> None:
    with pytest.raises(ValueError, match="known length"):
        new_bucket("b", "us-central1", replace(WANTED, run_length_s=None))
