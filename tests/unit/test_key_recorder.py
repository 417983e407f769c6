"""What is kept of a key while it is made, and what is described of it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from hotstart.cache import key_recorder
from hotstart.cache.key_recorder import KeyRecorder, Recorded, description_of

pytestmark = pytest.mark.unit

PROGRAM = b"p" * 1000


class Reader:
    """Reads a program of any bytes."""

    def module_text(self, bytecode: bytes) -> str:
        return "module @jit_f {\n  func.func public @main() -> () {\n  }\n}\n"

    def options(self, serialized: bytes) -> dict[str, str]:
        return {}

    def versions(self) -> dict[str, str]:
        return {"jax": "0.10.2"}

    def settings(self) -> dict[str, Any]:
        return {}

    def device_count(self) -> int:
        return 1


def record() -> Recorded:
    recorder = KeyRecorder(Reader())
    recorded = recorder.recording((), "0.10.2", list)
    hashed = hashlib.sha256()
    recorder.around_component("computation", lambda h: h.update(PROGRAM), hashed)
    hashed.update(b"0.10.2")
    recorder.around_component("compile options", lambda h: h.update(b"options"), hashed)
    recorder.finish(recorded, f"jit_f-{hashed.hexdigest()}")
    return recorded


@pytest.mark.parametrize(("most", "is_kept"), [(1000, True), (999, False)])
def test_recorder_keeps_no_program_that_is_too_large_but_its_digest(
    most: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_recorder, "_MAX_KEPT_BYTES", most)
    recorded = record()
    assert recorded.chunks["computation"] == ([PROGRAM] if is_kept else [])
    made = description_of(recorded, (), Reader())
    assert made.complete
    assert made.digests["computation"] == hashlib.sha256(PROGRAM).hexdigest()[:32]
    assert (made.program is not None) == is_kept


class OptionReader(Reader):
    def options(self, serialized: bytes) -> dict[str, str]:
        return {"build.x": "False", "override.xla_x": "False", "override.xla_y": "0"}


def test_description_keeps_overriding_options_whatever_they_say() -> None:
    made = description_of(record(), (), OptionReader())
    assert made.options == {"override.xla_x": "False", "override.xla_y": "0"}


def test_description_has_one_session_for_all_processes_of_an_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def session() -> str:
        return description_of(record(), (), Reader()).session

    monkeypatch.delenv("HOTSTART_RUN", raising=False)
    alone = session()
    assert alone == session() != ""
    monkeypatch.setenv("HOTSTART_RUN", "r-1")
    monkeypatch.setenv("HOTSTART_ATTEMPT", "1")
    first = session()
    monkeypatch.setattr(key_recorder, "_PROCESS", "another process")
    assert first == session() != alone
    monkeypatch.setenv("HOTSTART_ATTEMPT", "2")
    assert session() not in (first, alone, "")
