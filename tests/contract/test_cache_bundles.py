"""`hotstart cache export` and `import` as a user runs them: bundles, good ones and hostile ones."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotstart.cache.bundle import write_bundle
from hotstart.cache.entry import encode
from hotstart.cache.signing import Key, Keyring, Seal, open_sealed
from hotstart.cache.store import open_store
from hotstart.cache.verify import verify
from hotstart.conf.load import load_job
from hotstart.launcher.asked import fingerprint
from hotstart.launcher.bundle_manifests import fingerprints_here
from hotstart.launcher.cli import main
from hotstart.launcher.manifest import Manifest
from hotstart.launcher.manifest_store import ManifestStore
from tests.support.recorded_runs import (
    KEYS,
    META,
    NAMES,
    entry,
    fill,
    job,
    manifest,
    record_run,
    save_manifest,
)

pytestmark = pytest.mark.contract

OURS = Key(b"\xab" * 32)


@pytest.fixture(params=["directory", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = str(tmp_path / "cache")
    if request.param == "gcs":
        where = request.getfixturevalue("bucket") + "/cache"
    return where


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run directory that commands look at where none is named."""
    monkeypatch.setenv("HOTSTART_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return str(tmp_path / "home" / "runs")


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(tmp_path / "bundle.tar")


def cache(*arguments: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["cache", *arguments], input=input)


def facts(*arguments: str, exit_code: int = 0, input: bytes | None = None) -> dict[str, Any]:
    done = cache(*arguments, "--json", input=input)
    assert (done.exit_code, done.stderr) == (exit_code, ""), done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fates(found: dict[str, Any]) -> tuple[int, int, int, int]:
    return found["new"], found["there"], found["bad"], found["refused"]


def names(location: str) -> list[str]:
    return [stat.name for stat in open_store(location).list("")]


def set_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", f"hotstart-key-1-{OURS.secret.hex()}")


def test_export_of_a_location_and_import_bring_every_entry(
    location: str, bundle: str, tmp_path: Path
) -> None:
    fill(open_store(location), 0, 1, 2)
    exported = facts("export", location, bundle)
    assert (exported["entries"], exported["missing"], exported["bad"]) == (3, [], {})
    with tarfile.open(bundle) as archive:
        members = archive.getnames()
    assert members == [
        "bundle.json",
        *(f"entries/0000000{i}-jit_step" for i in range(3)),
        "index.json",
    ]
    there = str(tmp_path / "there")
    assert fates(facts("import", bundle, there)) == (3, 0, 0, 0)
    assert [open_store(there).get(name) for name in NAMES[:3]] == [entry(i) for i in range(3)]
    assert fates(facts("import", bundle, there)) == (0, 3, 0, 0)


def test_import_into_a_bucket_brings_what_lacks(location: str, bundle: str, tmp_path: Path) -> None:
    fill(open_store(str(tmp_path / "from")), 0, 1)
    facts("export", str(tmp_path / "from"), bundle)
    fill(open_store(location), 1)
    told = cache("import", bundle, location)
    assert (told.exit_code, told.stdout) == (
        0,
        f"{location}: 2 entries of {bundle}: 1 new, 1 there, 0 bad, 0 refused\n",
    )
    assert names(location) == NAMES[:2]


def test_export_of_a_run_takes_what_it_asked_for_from_its_own_cache(
    location: str, bundle: str, run_dir: str
) -> None:
    fill(open_store(location), 0, 1, 2)
    record_run(run_dir, "lm-1", location, [KEYS[0], KEYS[2], KEYS[5]], state="done")
    exported = facts("export", "latest", bundle, exit_code=1)
    assert (exported["location"], exported["run"]) == (location, "lm-1")
    assert exported["entries"] == 2
    assert exported["missing"] == [NAMES[5]]
    assert facts("export", "lm-1", bundle, "--force", "--key", "aaaa")["entries"] == 1


def test_export_takes_the_replacement_of_a_bad_entry_and_tells_of_bad_ones(
    location: str, bundle: str, tmp_path: Path
) -> None:
    store = open_store(location)
    store.create(NAMES[0], b"bad")
    store.create(f"{NAMES[0]}~1", entry(0))
    store.create(NAMES[1], entry(1)[:-1])
    exported = facts("export", location, bundle, exit_code=1)
    assert exported["entries"] == 1
    assert list(exported["bad"]) == [NAMES[1]]
    facts("import", bundle, str(tmp_path / "there"))
    assert open_store(str(tmp_path / "there")).get(NAMES[0]) == entry(0)


def test_bundle_goes_through_pipes(tmp_path: Path) -> None:
    source, there = str(tmp_path / "cache"), str(tmp_path / "there")
    fill(open_store(source), 0, 1)
    hotstart = f"{sys.executable} -m hotstart.launcher.cli cache"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c",
         f"{hotstart} export {source} - | {hotstart} import - {there} --json"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert fates(json.loads(done.stdout)) == (2, 0, 0, 0)
    assert "2 entries of" in done.stderr


def test_export_that_fails_leaves_no_file_and_the_old_one_as_it_was(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(str(tmp_path / "cache")), 0)
    Path(bundle).write_bytes(b"the old one")
    refused = cache("export", str(tmp_path / "cache"), bundle)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"hotstart: {bundle} exists; give another name, or --force to replace it\n"
    )

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    failed = cache("export", str(tmp_path / "cache"), bundle, "--force")
    assert failed.exit_code == 2
    assert "No space left on device" in failed.stderr
    assert Path(bundle).read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.tar", "cache"]


def test_import_into_a_signing_location_refuses_what_it_has_not_signed(
    location: str, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(str(tmp_path / "from")), 0)
    facts("export", str(tmp_path / "from"), bundle)
    set_key(monkeypatch)
    refused = cache("import", bundle, location)
    assert refused.exit_code == 1
    assert refused.stdout.splitlines()[0].endswith(": 0 new, 0 there, 0 bad, 1 refused")
    assert "it is not signed, and this host has a signing key" in refused.stdout
    assert "--sign takes and signs what is refused, if you trust where it is from" in refused.stdout
    assert names(location) == []
    assert fates(facts("import", bundle, location, "--sign")) == (1, 0, 0, 0)
    store = open_store(location)
    seal = Seal(Keyring((OURS,)), store.url)
    assert store.get(NAMES[0]) == entry(0, seal)
    assert [one.problem for one in verify(store, seal)] == [None]


def test_bundle_keeps_signatures_which_hold_for_their_own_location(
    location: str, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_key(monkeypatch)
    store = open_store(location)
    signed = entry(0, Seal(Keyring((OURS,)), location))
    store.create(NAMES[0], signed)
    facts("export", location, bundle)
    elsewhere = str(tmp_path / "elsewhere")
    assert fates(facts("import", bundle, elsewhere, exit_code=1)) == (0, 0, 0, 1)
    stat = store.stat(NAMES[0])
    assert stat is not None and store.delete(NAMES[0], stat.generation)
    assert fates(facts("import", bundle, location)) == (1, 0, 0, 0)
    assert store.get(NAMES[0]) == signed
    assert fates(facts("import", bundle, elsewhere, "--sign")) == (1, 0, 0, 0)
    resigned = entry(0, Seal(Keyring((OURS,)), elsewhere))
    assert open_store(elsewhere).get(NAMES[0]) == resigned


def test_import_with_sign_and_no_key_says_so(bundle: str, tmp_path: Path) -> None:
    refused = cache("import", bundle, str(tmp_path / "there"), "--sign")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "hotstart: --sign: this host has no signing key; see `hotstart key new`\n"
    )


def written(pairs: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    write_bundle(stream, "/from", pairs)
    return stream.getvalue()


def test_import_of_a_bundle_with_a_bad_entry_brings_the_others(tmp_path: Path) -> None:
    pairs = [(KEYS[0], entry(0)), (KEYS[1], entry(1)[:-1] + b"?"), (KEYS[2], b"rubbish")]
    found = facts("import", "-", str(tmp_path / "there"), input=written(pairs), exit_code=1)
    assert fates(found) == (1, 0, 2, 0)
    assert [one["source"] for one in found["not_stored"]] == [
        "entries/00000001-jit_step",
        "entries/00000002-jit_step",
    ]
    assert names(str(tmp_path / "there")) == [NAMES[0]]


@pytest.mark.parametrize(
    "key",
    ["../../../../etc/cron.d/x-" + "a" * 64, "/etc/passwd", "..", "a/../b-" + "c" * 64, "\0"],
)
def test_import_of_a_key_that_is_a_path_stays_in_the_store(key: str, tmp_path: Path) -> None:
    found = facts(
        "import", "-", str(tmp_path / "there"),
        input=written([(key, encode(key, b"payload", META))]),
    )  # fmt: skip
    assert fates(found) == (1, 0, 0, 0)
    [name] = names(str(tmp_path / "there"))
    assert name.startswith("entries/v1/") and ".." not in name.split("/")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("members", "more", "message"),
    [
        (0, 0, "-: it ends after 0 entries, without its index"),
        (0, 512 + 100, "-: it is cut short, after 0 entries"),
        (1, -1, "-: it is cut short, after 0 entries"),  # in the filling after the entry
        (1, 300, "-: it ends after 1 entries, without its index"),
        (2, 0, "-: it ends after 2 entries, without its index"),
    ],
)
def test_import_of_a_bundle_that_is_cut_short_keeps_what_came(
    members: int, more: int, message: str, tmp_path: Path
) -> None:
    data = written([(KEYS[0], entry(0)), (KEYS[1], entry(1))])
    whole = 2 * 512  # of the head, and of each member with its own
    each = 512 + -(-len(entry(0)) // 512) * 512
    cut = data[: whole + members * each + more]
    found = facts("import", "-", str(tmp_path / "there"), input=cut, exit_code=1)
    assert found["problem"] == message
    assert found["new"] == (members if more >= 0 else members - 1)


def member(name: str, change: Callable[[tarfile.TarInfo], None], body: bytes = b"") -> bytes:
    """A bundle whose second member is this one."""
    info = tarfile.TarInfo(name)
    info.size = len(body)
    change(info)
    head = written([])[: 2 * 512]
    return head + info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")


def as_type(kind: bytes, linkname: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, linkname

    return change


def huge(info: tarfile.TarInfo) -> None:
    info.size = 8 << 30


ENTRY = "entries/00000000-jit_step"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (member(ENTRY, as_type(tarfile.SYMTYPE, "/etc/passwd")), "that is a link"),
        (member(ENTRY, as_type(tarfile.LNKTYPE, "bundle.json")), "that is a link"),
        (member(ENTRY, as_type(tarfile.CHRTYPE)), "that is no plain file (type b'3')"),
        (member(ENTRY, as_type(tarfile.FIFOTYPE)), "that is no plain file (type b'6')"),
        (member(ENTRY, as_type(tarfile.DIRTYPE)), "that is no plain file (type b'5')"),
        (member(ENTRY, as_type(tarfile.GNUTYPE_SPARSE)), "that is no plain file (type b'S')"),
        (member(ENTRY, as_type(tarfile.XHDTYPE)), "that is no plain file (type b'x')"),
        (member("/etc/passwd", as_type(tarfile.REGTYPE)), "a member '/etc/passwd', which no"),
        (member("../x", as_type(tarfile.REGTYPE)), "a member '../x', which no bundle has"),
        (member("entries/../../x", as_type(tarfile.REGTYPE)), "which no bundle has"),
        (member("index.json", as_type(tarfile.REGTYPE), b"{"), "its index.json is none"),
        (
            member("index.json", as_type(tarfile.REGTYPE), b'{"entries": [{}]}'),
            "its index.json is none",
        ),
    ],
)
def test_import_of_a_member_that_no_bundle_has_ends_with_what_it_is(
    data: bytes, message: str, tmp_path: Path
) -> None:
    found = facts("import", "-", str(tmp_path / "there"), input=data, exit_code=1)
    assert message in found["problem"]
    assert [path.name for path in tmp_path.iterdir()] == []


def test_import_of_a_member_that_says_it_is_huge_reads_no_more_than_there_is(
    tmp_path: Path,
) -> None:
    info = tarfile.TarInfo(ENTRY)
    info.size = (8 << 30) - 1
    data = written([])[:1024] + info.tobuf(tarfile.USTAR_FORMAT)
    found = facts("import", "-", str(tmp_path / "there"), input=data, exit_code=1)
    assert found["problem"] == "-: it is cut short, after 0 entries"
    info.size = 9 << 30
    data = written([])[:1024] + info.tobuf(tarfile.GNU_FORMAT)
    found = facts("import", "-", str(tmp_path / "there"), input=data, exit_code=1)
    assert "is too large" in found["problem"]


def test_import_of_a_bundle_whose_index_is_of_others_says_so(tmp_path: Path) -> None:
    one, two = written([(KEYS[0], entry(0))]), written([(KEYS[1], entry(1))])
    index = one.index(b"index.json")
    data = two[: two.index(b"index.json")] + one[index:]
    found = facts("import", "-", str(tmp_path / "there"), input=data, exit_code=1)
    assert found["problem"] == (
        "-: its index is of 1 other entries: from 'entries/00000000-jit_step' on"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bundle of hotstart: it begins with 'nothing'"),
        (b"rubbish" * 200, "not a tar archive: invalid header"),
        (b"\x1f\x8b" + bytes(600), "not a tar archive: "),
        (member(ENTRY, as_type(tarfile.REGTYPE))[1024:], "not a bundle of hotstart: it begins"),
        (written([]).replace(b'"version": 2', b'"version": 3'), "a bundle of version 3; this"),
        (written([]).replace(b'"format"', b'"farmot"'), "not a bundle of hotstart: its bundle."),
    ],
)
def test_import_of_what_is_no_bundle_starts_nothing(
    data: bytes, message: str, tmp_path: Path
) -> None:
    refused = cache("import", "-", str(tmp_path / "there"), input=data)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"hotstart: -: {message}")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "CACHE"], "export: give either BUNDLE.tar or --stock DIR"),
        (["export", "CACHE", "a", "--stock", "b"], "export: give either BUNDLE.tar or --stock"),
        (["export", "nobody", "x.tar"], "no run 'nobody' in "),
        (["export", "CACHE", "x.tar", "--location", "/b"], "export: a LOCATION and --location"),
        (["export", "CACHE", "x.tar", "--key", "zzz"], "no entry 'zzz' in "),
        (["export", "/nowhere/at/all", "x.tar"], "/nowhere/at/all: there is no such directory"),
        (["export", "CACHE", "/nowhere/at/all/x.tar"], "export to /nowhere/at/all/x.tar: "),
        (["import", "/nowhere.tar"], "/nowhere.tar can't be read: No such file or directory"),
        (["import", "--stock", "/nowhere"], "/nowhere: there is no such directory"),
    ],
)
def test_bundle_bad_usage_is_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    fill(open_store(str(tmp_path / "cache")), 0)
    refused = cache(*(str(tmp_path / "cache") if a == "CACHE" else a for a in arguments))
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"hotstart: {message}")
    assert refused.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_export_of_a_directory_without_a_slash_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(str(tmp_path / "cache")), 0)
    monkeypatch.chdir(tmp_path)
    refused = cache("export", "cache", "x.tar")
    assert refused.stderr.endswith("if the directory is meant, write ./cache\n")
    assert facts("export", "./cache", "x.tar")["entries"] == 1


def latest(location: str, its_fingerprint: str, *keys: Key) -> Manifest | None:
    """What a launch of the job reads ahead by, from this location."""
    return ManifestStore(open_sealed(location, Keyring(keys))).latest(its_fingerprint)


@pytest.fixture
def exported(bundle: str, run_dir: str, tmp_path: Path) -> str:
    """A bundle of a run that asked for two programs, and left no manifest in its cache."""
    where = str(tmp_path / "cache")
    fill(open_store(where), 0, 1)
    record_run(run_dir, "lm-1", where, KEYS[:2], state="done")
    assert facts("export", "latest", bundle)["manifests"] == 1
    return bundle


def test_bundle_of_a_run_brings_its_manifest_to_where_its_next_launch_looks(
    exported: str, location: str, tmp_path: Path
) -> None:
    there = location.replace("/cache", "/there")
    told = cache("import", exported, there)
    assert told.exit_code == 0
    assert told.stdout.splitlines()[1:] == ["1 manifests, by which first starts read ahead: 1 new"]
    assert latest(there, fingerprint(job("/any"))) == manifest(KEYS[:2])
    again = facts("import", exported, there)
    assert again["manifests"] == {"new": 0, "there": 1, "bad": 0, "refused": 0}


def test_bundle_of_a_location_brings_the_manifests_of_its_jobs(bundle: str, tmp_path: Path) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    store = open_store(ours)
    fill(store, 0)
    save_manifest(store, ours, KEYS[:1])
    assert facts("export", ours, bundle)["manifests"] == 1
    assert facts("export", ours, bundle, "--force", "--key", KEYS[0])["manifests"] == 0
    facts("export", ours, bundle, "--force")
    facts("import", bundle, theirs)
    assert latest(theirs, fingerprint(job(ours))) == manifest(KEYS[:1])


def test_import_leaves_what_a_job_has_asked_for_there_but_for_other_versions(
    exported: str, tmp_path: Path
) -> None:
    there, its_fingerprint = str(tmp_path / "there"), fingerprint(job("/any"))
    own = manifest(KEYS[3:5])
    left = ManifestStore(open_store(there))
    left.save(its_fingerprint, own)
    assert facts("import", exported, there)["manifests"]["there"] == 1
    assert latest(there, its_fingerprint) == own
    left.save(its_fingerprint, replace(own, jax="0.9.0"))
    assert facts("import", exported, there)["manifests"]["new"] == 1
    assert latest(there, its_fingerprint) == manifest(KEYS[:2])


def test_import_for_a_job_files_the_manifest_as_that_jobs(exported: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    job_file = tmp_path / "elsewhere" / "job.yaml"
    (tmp_path / "elsewhere" / "train.py").touch()
    job_file.write_text("name: lm\nscript: train.py\nworkers: 1\nplatform: cpu\n")
    there = str(tmp_path / "there")
    facts("import", exported, there, "--job", str(job_file))
    here = fingerprints_here(load_job(str(job_file)).config)
    assert latest(there, here[1]) == manifest(KEYS[:2])
    job_file.write_text("name: lm\nscript: train.py\nworkers: 2\nplatform: cpu\n")
    told = facts("import", exported, there, "--job", str(job_file), exit_code=1)
    assert told["manifests"]["bad"] == 1


def test_import_of_a_manifest_into_a_signing_location_needs_sign_unless_it_is_signed_for_it(
    exported: str, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, its_fingerprint = str(tmp_path / "there"), fingerprint(job("/any"))
    set_key(monkeypatch)
    refused = facts("import", exported, there, exit_code=1)
    assert refused["manifests"] == {"new": 0, "there": 0, "bad": 0, "refused": 1}
    assert latest(there, its_fingerprint, OURS) is None
    assert facts("import", exported, there, "--sign")["manifests"]["new"] == 1
    assert latest(there, its_fingerprint, OURS) == manifest(KEYS[:2])
    facts("export", there, bundle, "--force")
    for stat in list(open_store(there).list("")):
        open_store(there).delete(stat.name, stat.generation)
    back = facts("import", bundle, there)
    assert (fates(back), back["manifests"]["new"]) == ((2, 0, 0, 0), 1)
    assert latest(there, its_fingerprint, OURS) == manifest(KEYS[:2])


def test_import_of_a_bundle_with_a_bad_manifest_says_so_and_brings_the_entries(
    tmp_path: Path,
) -> None:
    stream = io.BytesIO()
    write_bundle(stream, "/from", [(KEYS[0], entry(0))], [("a" * 64, b"no manifest")])
    there = str(tmp_path / "there")
    told = facts("import", "-", there, input=stream.getvalue(), exit_code=1)
    assert (fates(told), told["manifests"]["bad"]) == ((1, 0, 0, 0), 1)
    assert names(there) == NAMES[:1]


def test_import_of_a_bundle_of_version_1_brings_its_entries(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_bundle(stream, "/from", [(KEYS[0], entry(0))])
    old = stream.getvalue().replace(b'"version": 2', b'"version": 1')
    assert fates(facts("import", "-", str(tmp_path / "there"), input=old)) == (1, 0, 0, 0)
