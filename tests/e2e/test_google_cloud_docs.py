"""Every command of docs/google-cloud.md, in order, as it stands there.

Only BUCKET is replaced. The bucket's settings are a stand-in's, its objects the emulator's, and the
metadata server is one that says it is a machine in us-central1.
"""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gcs_emulator import GcsEmulator, create_bucket
from tests.support.gcs_json_api import GcsJsonApi, gcs_json_api
from tests.support.launch import Site, site
from tests.support.metadata_server import metadata_server

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "google-cloud.md").read_text()


@pytest.fixture
def user() -> Iterator[Site]:
    with site() as made:
        yield made
        made.assert_clean()


@pytest.fixture
def api(emulator: GcsEmulator) -> Iterator[GcsJsonApi]:
    with gcs_json_api(emulator.url) as running:
        yield running


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_commands_of_the_page_do_what_it_says(
    user: Site, api: GcsJsonApi, emulator: GcsEmulator
) -> None:
    name = f"docs-{uuid.uuid4().hex[:12]}"
    create_bucket(emulator.url, name)  # for its objects
    told = []
    with metadata_server() as server:
        env = {
            "STORAGE_EMULATOR_HOST": api.url,
            "GCE_METADATA_HOST": server.address,
            "RAY_ADDRESS": "local",
            "JAX_PLATFORMS": "cpu",
        }
        for command in commands():
            words = shlex.split(command.replace("BUCKET", name))
            assert words[0] == "hotstart"
            ended = user.run(*words[1:], folder=ROOT, env=env)
            told.append((" ".join(words[1:3]), ended.exit_code, ended.stdout))
            assert ended.stderr == "", ended.shown
    codes = [(command, code) for command, code, _ in told]
    # The bucket was made for another prefix than the team's, and for shorter runs.
    assert codes == [
        ("bucket create", 0),
        ("bucket check", 0),
        ("bucket check", 0),
        ("bucket check", 0),
        ("bucket check", 1),
        ("doctor", 0),
        ("doctor examples/bytelm/job.yaml", 0),
    ]
    assert f"made gs://{name}\n" in told[0][2]
    assert "no rule deletes entries" in told[4][2]
    assert f"gs://{name}/cache: can be read and written, " in told[6][2]
    assert f"gs://{name}/runs: can be read, " in told[6][2]


def test_page_names_the_settings_that_a_new_bucket_gets() -> None:
    from hotstart.cache.bucket import IAM_ROLES, Wanted, new_bucket

    made = new_bucket("b", "us-central1", Wanted("cache", 1.0))
    assert made["lifecycle"]["rule"][0]["condition"]["matchesPrefix"] == ["cache/entries/"]
    assert made["softDeletePolicy"] == {"retentionDurationSeconds": "0"}
    assert "under `cache/entries/` alone" in PAGE and "| soft delete | off |" in PAGE
    for role, bound in IAM_ROLES.items():
        (row,) = re.findall(rf"^\| `{role}`.*$", PAGE, re.MULTILINE)
        assert re.findall(r"roles/storage\.\w+", row) == list(bound)
