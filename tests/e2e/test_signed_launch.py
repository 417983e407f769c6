"""A launch with a signing key: all that it keeps is signed, and the secret is nowhere."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotstart.cache.entry import decode
from hotstart.cache.keyring import KEYS_VARIABLE, read_key_file, to_text
from hotstart.cache.signing import Seal, SealedStore
from hotstart.cache.store import open_store
from hotstart.launcher.record import RunRecord
from tests.support.launch import Site, await_true, parent_of, site

pytestmark = pytest.mark.e2e

SCRIPT = """
    import os, pathlib, subprocess, sys, time
    import jax, jax.numpy as jnp
    from hotstart.launcher import context

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("pids", os.getpid(), child.pid, flush=True)
    jax.jit(lambda x: jnp.tanh(x) + 1)(jnp.zeros((4, 4))).block_until_ready()
    context.step(1)
    if context.attempt() == 1 and "fail" in sys.argv:  # as an error reporter sees it
        frames = [frame for frame in sys._current_frames().values()]
        for frame in frames:
            frames += [frame.f_back] if frame.f_back else []
        seen = [frame.f_locals for frame in frames]
        raise RuntimeError(f"with all that there is: {dict(os.environ)} {sys.argv} {seen!r}")
    deadline = time.monotonic() + 60
    while not pathlib.Path(sys.argv[1]).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    print("finished", flush=True)
"""
JOB = """
    script: train.py
    workers: 2
    resources_per_worker: {CPU: 0.5}
    cache: {location: cache}
"""


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site() as made:
        made.write("train.py", SCRIPT)
        made.write("job.yaml", JOB)
        yield made


def new_key(here: Site, name: str) -> Path:
    path = here.root / name
    finished = here.run("key", "new", str(path))
    assert finished.exit_code == 0, finished.shown
    return path


def forms_of(secret: bytes) -> list[bytes]:
    """What a leak may look like, a part of it too."""
    return [secret, secret.hex().encode(), secret.hex().encode()[:32], base64.b64encode(secret)]


def holders(where: Path, forms: list[bytes], *but: Path) -> list[str]:
    """The files under a folder that hold one of the forms, or have it in their name."""
    found = []
    for path in where.rglob("*"):
        if path in but or path.is_symlink() or not path.is_file():
            continue
        try:
            data = os.fsencode(path) + path.read_bytes()
        except OSError:  # gone by now
            continue
        if any(form in data for form in forms):
            found.append(str(path))
    return found


def proc_holders(forms: list[bytes], what: str, pids: set[int] | None = None) -> list[int]:
    """The processes, of those given, whose `cmdline` or `environ` holds one of the forms."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (pids is None or int(entry.name) in pids):
            try:
                data = (entry / what).read_bytes()
            except OSError:
                continue
            if any(form in data for form in forms):
                found.append(int(entry.name))
    return found


def test_launch_with_a_key_signs_what_it_keeps_and_shows_the_secret_nowhere(here: Site) -> None:
    path = new_key(here, "first.key")
    keyring = read_key_file(str(path))
    forms = forms_of(keyring.keys[0].secret)
    go = here.root / "go"

    launched = here.start_launch(
        "job.yaml", "--json", f"args=[{go}, fail]", "restarts.backoff_s=0", "name=signed",
        env={KEYS_VARIABLE: to_text(keyring)},
    )  # fmt: skip
    shown = launched.wait_for(r"\[\d\] pids (\d+) (\d+)", count=4)
    pids = {int(pid) for match in shown for pid in match.groups()}
    agents = {parent_of(int(match[1])) for match in shown[-2:]}
    # Some time after the failed attempt's report is in the record, and with the second one alive.
    await_true(lambda: any(here.runs.rglob("00001/end")), 30.0)
    assert proc_holders(forms, "environ", agents) == list(agents)  # so that this can fail
    assert proc_holders(forms, "environ", pids) == []
    assert proc_holders(forms, "cmdline") == []
    assert holders(here.root, forms, path) == []  # Ray's session folder too
    assert list(here.temp.glob("*/session_*/logs/*")) != []
    go.touch()
    finished = launched.wait()

    assert finished.exit_code == 0, finished.shown
    assert not any(form.decode() in finished.shown for form in forms[1:])
    assert holders(here.root, forms, path) == []
    report = finished.report
    assert [a["outcome"] for a in report["attempts"]] == ["failed", "done"]
    counts = [w["cache"] for a in report["attempts"] for w in a["workers"]]
    assert {(c["errors"], c["unsigned"], c["bad_signature"]) for c in counts} == {(0, 0, 0)}
    assert sum(c["compiled"] for c in counts[2:]) == 0
    objects = [p for p in (here.folder / "cache").rglob("*") if p.is_file()]
    objects += [p for p in here.runs.rglob("*") if p.is_file() and "/logs/" not in str(p)]
    kept = [p for p in objects if "/.hotstart/" not in str(p)]  # that folder is bookkeeping
    unsigned = {p.name for p in kept if b"\n# hotstart-signed 1 " not in p.read_bytes()}
    assert unsigned == {"hotstart-probe"}  # made to see whether one may; it is empty
    record = RunRecord(SealedStore(open_store(str(here.runs)), Seal(keyring, str(here.runs))),
                       report["run"])  # fmt: skip
    assert "script:" in record.job_yaml()


def test_launch_with_another_key_takes_nothing_of_it_and_repairs_the_cache(here: Site) -> None:
    path = new_key(here, "second.key")
    location = here.folder / "cache"
    entries = [p for p in location.rglob("entries/v1/*") if p.is_file()]
    assert entries != []
    go = here.root / "go"
    go.touch()

    finished = here.launch(
        "job.yaml", "--json", f"args=[{go}]", f"cache.signing_key_file={path}", "name=another"
    )

    assert finished.exit_code == 0, finished.shown
    (attempt,) = finished.report["attempts"]
    counts = [w["cache"] for w in attempt["workers"]]
    refused = sum(c["bad_signature"] for c in [*counts, *attempt["hosts"]])
    assert refused >= len(entries)
    assert sum(c["unsigned"] + c["errors"] for c in counts) == 0
    assert sum(c["compiled"] for c in counts) == len(entries)
    seal = Seal(read_key_file(str(path)), str(location))
    for entry in entries:
        data = entry.read_bytes()
        match = re.search(rb'"key":"([^"]+)"', data)
        assert match is not None
        decode(match[1].decode(), data, seal)


def test_restart_of_a_run_of_another_key_is_refused_in_one_line(here: Site) -> None:
    path = new_key(here, "third.key")
    (run,) = [name for name in here.run_names() if name.startswith("signed")]

    finished = here.run("restart", run, env={"HOTSTART_SIGNING_KEY_FILE": str(path)})

    assert finished.exit_code == 1
    assert finished.stderr.splitlines()[-1] == (
        f"hotstart: {here.runs}/{run}/job.yaml is not signed with a key of this host; set the key "
        "that the run was launched with (docs/trust.md), or launch the job anew"
    )


def test_launch_with_a_key_file_that_others_may_read_starts_nothing(here: Site) -> None:
    path = new_key(here, "open.key")
    path.chmod(0o644)
    before = here.run_names()

    finished = here.launch("job.yaml", env={"HOTSTART_SIGNING_KEY_FILE": str(path)})

    assert (finished.exit_code, here.run_names()) == (2, before)
    assert finished.stderr == (
        "hotstart: HOTSTART_SIGNING_KEY_FILE: others may read or change the signing key file "
        f"{path} (mode 0644); run: chmod 600 {path}, and if others could read it, make a new key\n"
    )


def test_key_commands_show_ids_and_never_the_key(here: Site) -> None:
    path = new_key(here, "shown.key")
    secret = read_key_file(str(path)).keys[0]

    again = here.run("key", "new", str(path))
    ids = here.run("key", "ids", str(path))
    none = here.run("key", "ids")

    assert (again.exit_code, ids.exit_code, none.exit_code) == (2, 0, 0)
    assert again.stderr.startswith(f"hotstart: {path} exists and is not overwritten")
    assert ids.stdout == f"{secret.id}  signs and verifies\n"
    assert none.stdout == "no signing key is set\n"
    assert secret.secret.hex() not in again.shown + ids.shown
