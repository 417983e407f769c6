"""`hotstart bucket` as a user runs it: against a stand-in for the JSON API, and the emulator.

The emulator keeps no lifecycle rules, no soft delete and no permissions, so nearly all of this
needs the stand-in (tests/support/gcs_json_api.py).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.bucket import Wanted, new_bucket
from hotstart.cache.errors import StoreError
from hotstart.cache.gcs_bucket import GcsBucket
from hotstart.cache.lifecycle import Layout, entries_rule
from hotstart.launcher.cli import main
from tests.support.gcs_emulator import GcsEmulator
from tests.support.gcs_json_api import ALL, GcsJsonApi, gcs_json_api
from tests.support.metadata_server import metadata_server

pytestmark = pytest.mark.emulator

RULE = entries_rule(Layout.of_cache("cache"), 10)
CREATE = ("--run-length", "10d", "--location", "us-central1", "--project", "jobs")


@pytest.fixture(scope="module")
def _running() -> Iterator[GcsJsonApi]:
    with gcs_json_api() as api:
        yield api


@pytest.fixture
def api(_running: GcsJsonApi, monkeypatch: pytest.MonkeyPatch) -> GcsJsonApi:
    """A stand-in without buckets, on a machine that is none of Google Cloud."""
    _running.reset()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _running.url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GCE_METADATA_TIMEOUT", "1")  # which the commands would set for good
    monkeypatch.setenv("GCE_METADATA_DETECT_RETRIES", "1")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    return _running


@pytest.fixture
def on_google(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine in us-central1 of the project `jobs`."""
    with metadata_server() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        monkeypatch.delenv("NO_GCE_CHECK", raising=False)
        yield


def bucket(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bucket", *arguments])


def as_json(*arguments: str) -> tuple[int, dict[str, Any]]:
    ended = bucket(*arguments, "--json")
    return ended.exit_code, json.loads(ended.stdout)


def test_created_bucket_has_what_the_guide_asks_for(api: GcsJsonApi) -> None:
    made = bucket("create", "gs://jobs-cache", *CREATE)
    assert made.stdout == (
        "made gs://jobs-cache\n"
        "gs://jobs-cache, entries under cache/entries/: as it should be; "
        "this identity is a repairer\n"
    )
    assert made.exit_code == 0
    kept = api.buckets["jobs-cache"]
    assert (kept["location"], kept["storageClass"]) == ("US-CENTRAL1", "STANDARD")
    assert kept["softDeletePolicy"] == {"retentionDurationSeconds": "0"}
    assert kept["lifecycle"] == {"rule": [RULE]}
    assert kept["iamConfiguration"] == {
        "uniformBucketLevelAccess": {"enabled": True},
        "publicAccessPrevention": "enforced",
    }
    assert kept["projectNumber"] == "1001"


def test_created_bucket_takes_prefix_and_soft_delete(api: GcsJsonApi) -> None:
    made = bucket("create", "gs://b-1", *CREATE, "--prefix", "team/xla/", "--soft-delete", "7d")
    assert made.exit_code == 0, made.output
    kept = api.buckets["b-1"]
    assert kept["softDeletePolicy"] == {"retentionDurationSeconds": "604800"}
    assert kept["lifecycle"]["rule"][0]["condition"] == {
        "age": 10,
        "matchesPrefix": ["team/xla/entries/"],
    }


def test_create_twice_leaves_it_as_it_is_and_checks(api: GcsJsonApi) -> None:
    assert bucket("create", "gs://twice", *CREATE).exit_code == 0
    before = dict(api.buckets["twice"])
    again = bucket("create", "gs://twice", *CREATE)
    assert again.exit_code == 0
    assert again.stdout.startswith("gs://twice exists already, and is left as it is\n")
    longer = bucket("create", "gs://twice", *CREATE[2:], "--run-length", "30d")
    assert longer.exit_code == 1
    assert "lifecycle: entries are deleted after 10 days; should be" in longer.stdout
    assert api.buckets["twice"] == before


def test_create_of_somebody_elses_name_says_so(api: GcsJsonApi) -> None:
    api.foreign.add("taken")
    refused = bucket("create", "gs://taken", *CREATE)
    assert refused.exit_code == 2
    assert refused.stderr == (
        "hotstart: gs://taken is somebody else's, or hidden from this identity: bucket names are "
        "one for all of Google Cloud; choose another name\n"
    )


def test_create_on_a_google_machine_needs_no_place(api: GcsJsonApi, on_google: None) -> None:
    made = bucket("create", "gs://here", "--run-length", "36h")
    assert made.exit_code == 0, made.output
    assert api.buckets["here"]["location"] == "US-CENTRAL1"
    assert api.buckets["here"]["projectNumber"] == "1001"
    assert api.buckets["here"]["lifecycle"]["rule"][0]["condition"]["age"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gs://b-1", "--run-length", "10d", "--project", "jobs"),
         "this is no Google Cloud machine, so give --location, the jobs' region"),
        (("gs://b-1", "--run-length", "10d", "--location", "us-central1"),
         "this is no Google Cloud machine, so give --project, the jobs' project"),
        (("gs://b-1/cache", *CREATE),
         "gs://b-1/cache: a bucket has no prefix; give gs://b-1 --prefix cache"),
        (("gs://Upper", *CREATE), "gs://Upper: a bucket's name has 3 to 63 small letters"),
        (("/a/folder", *CREATE), "/a/folder: expected a bucket, as in gs://NAME"),
        (("gs://b-1", *CREATE, "--project", "nobodys"), "is there a project nobodys?"),
        (("gs://b-1", *CREATE, "--location", "moon-1"), "location constraint is not valid: MOON-1"),
    ],
)  # fmt: skip
def test_create_of_what_cannot_be_says_why_in_one_line(
    api: GcsJsonApi, arguments: tuple[str, ...], message: str
) -> None:
    refused = bucket("create", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr and refused.stderr.count("\n") == 1
    assert api.buckets == {}


@pytest.mark.parametrize("length", ["10", "ten days", "0d", "11y", "4000d", "-1d"])
def test_run_length_that_is_none_is_refused(api: GcsJsonApi, length: str) -> None:
    refused = bucket("create", "gs://b-1", *CREATE[2:], f"--run-length={length}")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"hotstart: --run-length: {length!r} is no length of time up to 10 years; write 36h, 10d "
        "or 2w\n"
    )


@pytest.mark.parametrize("length", ["3d", "91d", "100w"])
def test_soft_delete_that_google_has_not_is_refused(api: GcsJsonApi, length: str) -> None:
    refused = bucket("create", "gs://b-1", *CREATE, "--soft-delete", length)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"hotstart: --soft-delete: {length!r}: soft delete lasts 7d to 90d, or is 0 for off\n"
    )


def test_check_of_a_bucket_with_googles_defaults_tells_and_mends(
    api: GcsJsonApi, on_google: None
) -> None:
    api.add("plain")
    found = bucket("check", "gs://plain", "--run-length", "10d")
    assert (found.exit_code, found.stderr) == (1, "")
    lines = found.stdout.splitlines()
    assert lines[0] == (
        "gs://plain, entries under cache/entries/: 4 findings; this identity is a repairer"
    )
    assert lines[1:4] == [
        "  lifecycle: no rule deletes entries; should be Delete by age under cache/entries/ alone, "
        "after 10 days or more",
        "    why: entries of old programs and versions stay for ever, and are paid for",
        "    mend: hotstart bucket check gs://plain/cache --run-length 10d --fix",
    ]
    assert lines[4:8] == [
        "  uniform bucket-level access: off; should be on",
        "    why: an object's own access list can let others write what every reader runs",
        "    for others who use the bucket: who reads or writes by an object's own access list "
        "can't any more",
        "    mend, or --fix-all: gcloud storage buckets update gs://plain "
        "--uniform-bucket-level-access",
    ]
    assert lines[-2:] == [
        "--fix mends what is about the cache's entries alone",
        "--fix-all mends what changes the bucket for others too: see each of them above",
    ]
    assert ("PATCH", "b/plain") not in api.requests

    before = api.buckets["plain"]
    mended = bucket("check", "gs://plain", "--run-length", "10d", "--fix")
    assert mended.exit_code == 1, mended.output
    assert [line for line in mended.stdout.splitlines() if line.startswith("mended ")] == [
        "mended lifecycle: was no rule deletes entries; should be Delete by age under "
        "cache/entries/ alone, after 10 days or more",
    ]
    assert "--fix-all mends what changes the bucket for others too" in mended.stdout
    rule = {"lifecycle": {"rule": [RULE]}, "metageneration": "2"}
    assert api.buckets["plain"] == {**before, **rule}

    mended = bucket("check", "gs://plain", "--run-length", "10d", "--fix-all")
    assert mended.exit_code == 0, mended.output
    assert [line for line in mended.stdout.splitlines() if line.startswith("mended ")] == [
        "mended uniform bucket-level access: was off; should be on",
        "mended public access prevention: was not enforced; should be enforced",
        "mended soft delete: was 7 days; should be off",
    ]
    assert mended.stdout.splitlines()[-1].startswith("gs://plain, entries under cache/entries/: as")
    assert api.buckets["plain"]["lifecycle"] == {"rule": [RULE]}
    assert api.requests.count(("PATCH", "b/plain")) == 2


def test_fix_all_mends_everything_that_can_be_and_names_what_cannot(
    api: GcsJsonApi, on_google: None
) -> None:
    tmp = {"action": {"type": "Delete"}, "condition": {"age": 1, "matchesPrefix": ["tmp/"]}}
    everything = {"action": {"type": "Delete"}, "condition": {"age": 5}}
    api.add(
        "spoilt",
        project="other",
        location="EU",
        storageClass="NEARLINE",
        autoclass={"enabled": True},
        versioning={"enabled": True},
        billing={"requesterPays": True},
        retentionPolicy={"retentionPeriod": "86400"},
        lifecycle={"rule": [tmp, everything]},
    )
    api.permissions = ALL - {"storage.objects.delete"}
    arguments = ("check", "gs://spoilt", "--run-length", "10d", "--role", "repairer")

    exit_code, before = as_json(*arguments)
    assert exit_code == 1
    assert [(f["subject"], f["fixable"]) for f in before["findings"]] == [
        ("permissions", False),
        ("lifecycle", True),
        ("lifecycle", True),
        ("requester pays", True),
        ("retention policy", False),
        ("uniform bucket-level access", True),
        ("public access prevention", True),
        ("autoclass", True),
        ("storage class", True),
        ("versioning", True),
        ("soft delete", True),
        ("project", False),
        ("location", False),
    ]
    exit_code, after = as_json(*arguments, "--fix-all")
    assert exit_code == 1
    assert [f["subject"] for f in after["findings"]] == [
        *("permissions", "retention policy", "project", "location")
    ]
    assert len(after["mended"]) == 9
    kept = api.buckets["spoilt"]
    assert kept["lifecycle"] == {"rule": [tmp, RULE]}
    assert kept["retentionPolicy"] == {"retentionPeriod": "86400"}
    shown = bucket(*arguments, "--fix-all").stdout
    assert shown.count("mend (not by --fix): ") == 4
    assert "--fix-all mends" not in shown
    assert api.requests.count(("PATCH", "b/spoilt")) == 1


def test_check_as_json_is_whole(api: GcsJsonApi) -> None:
    api.add("plain", softDeletePolicy={"retentionDurationSeconds": "0"}, lifecycle={"rule": [RULE]},
            iamConfiguration={"uniformBucketLevelAccess": {"enabled": True}})  # fmt: skip
    exit_code, facts = as_json("check", "gs://plain/cache", "--run-length", "9d")
    assert exit_code == 1
    assert facts == {
        "bucket": "gs://plain",
        "entries": "cache/entries/",
        "findings": [
            {
                "subject": "public access prevention",
                "found": "not enforced",
                "wanted": "enforced",
                "why": "one wrong role for allUsers, and the world reads or writes what every "
                "reader runs",
                "command": "gcloud storage buckets update gs://plain --public-access-prevention",
                "fixable": True,
                "others": "who reads anything in it as the public can't any more",
            }
        ],
        "mended": [],
        "not_looked_at": [
            "the location: this is no Google Cloud machine; give --location REGION",
            "the project: this is no Google Cloud machine; give --project ID",
        ],
        "role": "repairer",
    }


@pytest.mark.parametrize(
    ("url", "entries"),
    [
        ("gs://b-1", "cache/entries/"),
        ("gs://b-1/team/cache", "team/cache/entries/"),
        ("gs://b-1/", "cache/entries/"),
    ],
)
def test_check_looks_at_the_prefix_that_is_given(api: GcsJsonApi, url: str, entries: str) -> None:
    api.add("b-1")
    assert as_json("check", url)[1]["entries"] == entries


def test_check_of_the_root_of_a_bucket(api: GcsJsonApi) -> None:
    api.add("b-1")
    exit_code, facts = as_json("check", "gs://b-1", "--prefix", "", "--run-length", "10d")
    assert (exit_code, facts["entries"]) == (1, "entries/")
    assert facts["findings"][0]["command"] == (
        "hotstart bucket check gs://b-1 --prefix '' --run-length 10d --fix"
    )


@pytest.mark.parametrize(
    ("project", "found"), [("jobs", []), ("1001", []), ("other", ["project"]), ("77", ["project"])]
)
def test_check_knows_the_project_by_id_and_number(
    api: GcsJsonApi, project: str, found: list[str]
) -> None:
    assert bucket("create", "gs://b-1", *CREATE).exit_code == 0
    exit_code, facts = as_json("check", "gs://b-1", "--project", project)
    assert [finding["subject"] for finding in facts["findings"]] == found
    assert exit_code == (1 if found else 0)


def test_check_of_no_bucket_says_how_to_make_it(api: GcsJsonApi) -> None:
    refused = bucket("check", "gs://nowhere")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "hotstart: there is no bucket gs://nowhere; make it with hotstart bucket create "
        "gs://nowhere, or correct the name\n"
    )


def test_check_by_an_identity_that_reads_objects_only_names_role_and_what_is_needed(
    api: GcsJsonApi,
) -> None:
    api.add("b-1")
    api.permissions = frozenset({"storage.objects.get", "storage.objects.list"})
    refused = bucket("check", "gs://b-1")
    assert refused.exit_code == 2
    assert "does not have storage.buckets.get access" in refused.stderr
    assert "which roles/storage.bucketViewer and roles/storage.admin have" in refused.stderr
    assert refused.stderr.endswith("this identity is a reader there, which is enough for jobs\n")


def test_fix_by_an_identity_that_may_not_says_so(api: GcsJsonApi) -> None:
    api.add("b-1")
    api.permissions = ALL - {"storage.buckets.update"}
    refused = bucket("check", "gs://b-1", "--fix-all")
    assert refused.exit_code == 2
    assert "does not have storage.buckets.update access" in refused.stderr
    assert refused.stderr.endswith("which roles/storage.admin has\n")


def test_create_by_an_identity_that_may_not_says_what_it_needs(api: GcsJsonApi) -> None:
    api.permissions = ALL - {"storage.buckets.create"}
    refused = bucket("create", "gs://b-1", *CREATE)
    assert refused.exit_code == 2
    assert refused.stderr.endswith(
        "buckets are made with storage.buckets.create, which roles/storage.admin has\n"
    )


def test_fix_that_somebody_overtakes_changes_nothing(
    api: GcsJsonApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotstart.cache import gcs_bucket

    api.add("b-1")
    patch = gcs_bucket.GcsBucket.patch

    def overtaken(self: Any, changes: Any, metageneration: int) -> Any:
        api.buckets["b-1"] |= {"metageneration": "7", "labels": {"by": "somebody else"}}
        return patch(self, changes, metageneration)

    monkeypatch.setattr(gcs_bucket.GcsBucket, "patch", overtaken)
    refused = bucket("check", "gs://b-1", "--fix-all")
    assert refused.exit_code == 2
    assert "somebody else has changed them just now; look again" in refused.stderr
    assert "softDeletePolicy" in api.buckets["b-1"]
    assert api.buckets["b-1"]["labels"] == {"by": "somebody else"}


def test_fix_leaves_a_rule_for_runs_that_fix_all_takes_away(api: GcsJsonApi) -> None:
    kept = {"action": {"type": "Delete"}, "condition": {"age": 90, "matchesPrefix": ["runs/"]}}
    settings = new_bucket("ours", "us-central1", Wanted("cache", 864_000.0))
    settings |= {"lifecycle": {"rule": [kept]}}
    del settings["name"]
    api.add("ours", **settings)
    arguments = ("check", "gs://ours", "--run-length", "10d")
    mended = bucket(*arguments, "--fix")
    assert mended.exit_code == 1
    assert api.buckets["ours"]["lifecycle"] == {"rule": [kept, RULE]}
    assert "  lifecycle: runs/ is deleted after 90 days; should be" in mended.stdout
    assert bucket(*arguments, "--fix-all").exit_code == 0
    assert api.buckets["ours"]["lifecycle"] == {"rule": [RULE]}


def test_create_whose_answer_is_lost_says_that_the_bucket_is_there(api: GcsJsonApi) -> None:
    api.lost = 1
    exit_code, facts = as_json("create", "gs://b-1", *CREATE)
    assert (exit_code, facts["created"], facts["findings"]) == (0, None, [])
    assert api.requests.count(("POST", "b")) == 2
    api.lost = 1
    again = bucket("create", "gs://b-1", *CREATE)
    assert again.exit_code == 0
    assert again.stdout.startswith(
        "gs://b-1 is there; an answer was lost, so it is not known whether this made it\n"
    )


def test_fix_whose_answer_is_lost_says_what_was_mended(api: GcsJsonApi) -> None:
    api.add("b-1")
    api.lost = 1
    exit_code, facts = as_json("check", "gs://b-1", "--run-length", "10d", "--fix-all")
    assert (exit_code, facts["findings"], len(facts["mended"])) == (0, [], 4)
    assert api.requests.count(("PATCH", "b/b-1")) == 2


def test_fix_whose_answer_is_lost_and_that_somebody_overtakes_says_so(
    api: GcsJsonApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotstart.cache import gcs_bucket

    api.add("b-1")
    read = gcs_bucket.GcsBucket.read

    def overtaken(self: Any) -> Any:
        found = read(self)
        api.buckets["b-1"] |= {"metageneration": "7"}
        return found

    monkeypatch.setattr(gcs_bucket.GcsBucket, "read", overtaken)
    api.lost = 1
    refused = bucket("check", "gs://b-1", "--fix-all")
    assert refused.exit_code == 2
    assert "somebody else has changed them just now; look again" in refused.stderr


def test_create_and_fix_without_any_answer_that_were_done_are_done(api: GcsJsonApi) -> None:
    store = GcsBucket("b-1", deadline_s=0.6)
    api.lost = 1000
    assert store.create(new_bucket("b-1", "us-central1", Wanted("cache", 1.0)), "jobs") is None
    store.patch({"storageClass": "NEARLINE"}, 1)
    assert api.buckets["b-1"]["storageClass"] == "NEARLINE"


def test_create_and_fix_without_any_answer_that_were_not_done_say_so(api: GcsJsonApi) -> None:
    store = GcsBucket("b-1", deadline_s=0.6)
    api.permissions = ALL - {"storage.buckets.create", "storage.buckets.update"}
    api.lost = 1000
    with pytest.raises(StoreError, match="; there is no bucket gs://b-1 now$"):
        store.create(new_bucket("b-1", "us-central1", Wanted("cache", 1.0)), "jobs")
    api.add("b-1")
    with pytest.raises(StoreError, match="; the change is not there now$"):
        store.patch({"storageClass": "NEARLINE"}, 1)


def test_two_prefixes_are_refused(api: GcsJsonApi) -> None:
    refused = bucket("check", "gs://b-1/one", "--prefix", "two")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "hotstart: gs://b-1/one and --prefix two name two prefixes; give one\n"
    )


def test_emulator_takes_a_bucket_and_its_checks(
    emulator: GcsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    name = f"made-{uuid.uuid4().hex[:12]}"
    made = bucket("create", f"gs://{name}", *CREATE)
    # It keeps neither the rule nor what it says of access, and knows no permissions.
    assert made.exit_code == 1, made.output
    assert made.stdout.startswith(f"made gs://{name}\n")
    assert "lifecycle: no rule deletes entries" in made.stdout
    assert "not looked at: permissions: the store does not tell them" in made.stdout
    again = bucket("create", f"gs://{name}", *CREATE)
    assert again.stdout.startswith(f"gs://{name} exists already, and is left as it is\n")
