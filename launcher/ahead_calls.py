"""What a gang's agents are asked about programs to have ready, from threads beside the loop's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from hotstart.cache.config import CacheConfig
from hotstart.launcher.ray_agent import cause_of

logger = logging.getLogger(__name__)

_CALL_S = 30.0


class AheadCalls:
    """A part of `Gang`. What an agent does not answer is left out: that is for the loop to see."""

    def __init__(self) -> None:
        self._agents: list[Any] = []

    def read_ahead(self, attempt: int, manifest_json: bytes) -> None:
        """Let all agents bring a manifest's entries to their hosts; does not block on them."""
        import ray

        with contextlib.suppress(Exception):  # the gang is being closed: nothing to be ready for
            shared = ray.put(manifest_json)
            for agent in self._agents:
                agent.read_ahead.remote(attempt, shared)

    def asked(self) -> Callable[[], dict[int, list[dict[str, Any]]]]:
        """Ask what JAX has asked for in the attempt so far; does not block.

        The function returned does: it gives each worker's requests by process index.
        """
        refs: list[Any] = []
        with contextlib.suppress(Exception):
            refs += [agent.asked.remote() for agent in self._agents]

        def answers() -> dict[int, list[dict[str, Any]]]:
            found: dict[int, list[dict[str, Any]]] = {}
            for answer in self._answers(refs):
                found |= answer
            return found

        return answers

    def latest_manifest(self, cache: CacheConfig, fingerprint: str) -> bytes | None:
        """The JSON of a job's latest manifest, which process 0's host looks for; None if none."""
        ask = self._agents[0].latest_manifest.remote
        return next(iter(self._answers([ask(cache, fingerprint)])), None)

    def latest_manifest_of(self, cache: CacheConfig, fingerprints: Sequence[str]) -> bytes | None:
        """The latest of several jobs' manifests, likewise; see `ManifestStore.latest_of`."""
        ask = self._agents[0].latest_manifest_of.remote
        return next(iter(self._answers([ask(cache, tuple(fingerprints))])), None)

    def save_manifest(self, cache: CacheConfig, fingerprint: str, manifest_json: bytes) -> None:
        """Let process 0's host keep a job's manifest in the cache's location."""
        self._answers([self._agents[0].save_manifest.remote(cache, fingerprint, manifest_json)])

    def _answers(self, refs: list[Any]) -> list[Any]:
        import ray

        answers = []
        try:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=_CALL_S) if refs else ([], [])
        except Exception as error:  # Ray's connection has ended
            logger.info("no answer from the agents: %s", error)
            return []
        for ref in ready:
            try:
                answers.append(ray.get(ref))
            except Exception as error:
                logger.info("no answer from an agent: %s", cause_of(error))
        return answers
