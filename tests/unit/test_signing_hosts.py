"""Whether the hosts' signing keys go together, and how a worker gets its host's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hotstart.cache.config import CacheConfig
from hotstart.cache.errors import SigningKeyError
from hotstart.launcher.agent import HostInfo
from hotstart.launcher.agent_cache import AgentCache
from hotstart.launcher.environ import compose_environ
from hotstart.launcher.errors import UsageError
from hotstart.launcher.gang import Gang
from hotstart.launcher.placement import GangSize
from hotstart.launcher.plan import AttemptPlan, Program, WorkerPlan
from hotstart.launcher.reservation import Reservation

pytestmark = pytest.mark.unit

CACHE = CacheConfig("gs://bucket/cache")


class AnsweringGang(Gang):
    """A gang whose hosts answer with these key ids."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        super().__init__(Reservation((), None), GangSize(1, 1, 1, 1), lambda: 0)
        self._answers = dict(enumerate(answers))
        self._infos = [HostInfo(f"host-{index}", "10.0.0.1", 1) for index in self._answers]

    def _call_all(self, what: str, call: Any, *args: Any, **kwargs: Any) -> Mapping[int, Any]:
        return self._answers


@pytest.mark.parametrize(
    "hosts",
    [
        [("new",), ("new",)],
        [("new", "old"), ("old", "new")],  # in the middle of a rotation
        [("old", "new")],
    ],
)
def test_hosts_that_have_what_the_others_sign_with_are_taken(hosts):
    AnsweringGang(*hosts).check_signing_keys(CACHE, ("new", "old"))


@pytest.mark.parametrize(
    ("host", "shown"), [((), "none"), (("old",), "old"), (("other", "new"), "other, new")]
)
def test_host_whose_keys_do_not_go_with_the_drivers_is_named(host, shown):
    with pytest.raises(UsageError) as raised:
        AnsweringGang(("new", "old"), host).check_signing_keys(CACHE, ("new", "old"))

    assert str(raised.value) == (
        f"host-1 has the signing keys {shown}, the driver new, old; each must have the key that "
        "the other signs with, its first: bring one key file to all hosts (docs/trust.md)"
    )


def test_agent_reads_its_hosts_keys_once_so_that_all_of_a_run_agree(monkeypatch):
    agent = AgentCache("127.0.0.1")
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", "hotstart-key-1-" + "01" * 32)
    first = agent.keyring(CACHE)
    monkeypatch.setenv("HOTSTART_SIGNING_KEYS", "hotstart-key-1-" + "02" * 32)

    assert agent.keyring(CACHE) is first
    assert AgentCache("127.0.0.1").keyring(CACHE).ids != first.ids


def test_agent_that_cannot_use_its_key_raises_and_never_goes_on_without(monkeypatch):
    monkeypatch.setenv("HOTSTART_SIGNING_KEY_FILE", "/not/there")
    agent = AgentCache("127.0.0.1")

    for _ in range(2):
        with pytest.raises(SigningKeyError, match="cannot be read"):
            agent.keyring(CACHE)


def test_worker_environ_has_the_path_of_a_key_file_and_no_key():
    attempt = AttemptPlan(
        "run", 1, 1, "h:1", True, 1.0, Program("t.py", None, (), (), "/job"), CACHE
    )
    host = {
        "HOTSTART_SIGNING_KEYS": "hotstart-key-1-secret",
        "HOTSTART_SIGNING_KEY_FILE": "/etc/signing.key",
        "PATH": "/bin",
    }

    environ = compose_environ(WorkerPlan(0, 0, 0.0, attempt), host)

    assert "secret" not in str(environ)
    assert environ["HOTSTART_SIGNING_KEY_FILE"] == "/etc/signing.key"
