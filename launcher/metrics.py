"""Counters of a host's workers for Ray's metrics, which Ray exports to Prometheus.

| name at Prometheus | kind | what |
|---|---|---|
| `ray_hotstart_cache_requests_total` | counter | programs that workers asked the cache for |
| `ray_hotstart_cache_hits_total` | counter | those that it served |
| `ray_hotstart_cache_compiled_total` | counter | programs that workers compiled |
| `ray_hotstart_cache_errors_total` | counter | as a report's `errors` |
| `ray_hotstart_cache_saved_seconds_total` | counter | seconds of compilation that hits saved |
| `ray_hotstart_last_step` | gauge | the last step of the slowest worker on this host |
| `ray_hotstart_seconds_to_first_step` | gauge | of the slowest worker on this host, this attempt |

Tags: `run`, beside those that Ray adds for the node.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_SEE = "See hotstart's docs/runs.md."
_COUNTERS = {  # names of a worker's `cache` in its report
    "requests": "hotstart_cache_requests_total",
    "hits": "hotstart_cache_hits_total",
    "compiled": "hotstart_cache_compiled_total",
    "errors": "hotstart_cache_errors_total",
    "saved_s": "hotstart_cache_saved_seconds_total",
}
_LAST_STEP = "hotstart_last_step"
_FIRST_STEP = "hotstart_seconds_to_first_step"


class HostMetrics:
    """Sends what the workers' reports say, each few seconds and when asked, until `close`."""

    def __init__(
        self,
        reports: Callable[[], Iterable[tuple[str, int, int, Mapping[str, Any]]]],
        *,
        every_s: float = _EVERY_S,
    ) -> None:
        """`reports` gives of each worker its run, attempt, process index and report so far."""
        self._reports = reports
        self._every_s = every_s
        self._counters: dict[str, Any] = {}
        self._gauges: dict[str, Any] = {}
        self._counted: dict[tuple[str, int, int], dict[str, float]] = {}
        self._lock = threading.Lock()  # the ticks and who asks must not count the same twice
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hotstart-metrics", daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Send what is new now: at the end of an attempt, whose workers are then forgotten."""
        try:
            with self._lock:
                if not self._gauges:
                    self._declare()
                self._send()
        except Exception as error:  # nobody's job fails for want of a metric
            logger.info("metrics are not sent: %s", error)

    def close(self) -> None:
        """Send what is new, and no more after that."""
        self._over.set()
        self._thread.join(timeout=1.0)

    def _declare(self) -> None:
        from ray.util.metrics import Counter, Gauge

        for field, name in _COUNTERS.items():
            self._counters[field] = Counter(name, description=_SEE, tag_keys=("run",))
        for name in (_LAST_STEP, _FIRST_STEP):
            self._gauges[name] = Gauge(name, description=_SEE, tag_keys=("run",))

    def _run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._over.wait(self._every_s)
            self.send()

    def _send(self) -> None:
        gauges: dict[str, dict[str, float]] = {}
        counted, self._counted = self._counted, {}  # workers of earlier attempts don't come back
        for run, attempt, index, report in list(self._reports()):
            cache = report.get("cache", {})
            before = self._counted[run, attempt, index] = counted.get((run, attempt, index), {})
            for field, counter in self._counters.items():
                value = float(cache.get(field) or 0)
                if (more := value - before.get(field, 0.0)) > 0:
                    counter.inc(more, tags={"run": run})
                    before[field] = value
            mine = gauges.setdefault(run, {})
            step, first_s = report.get("last_step"), report.get("phases", {}).get("first_step")
            if isinstance(step, int):
                mine[_LAST_STEP] = min(step, mine.get(_LAST_STEP, step))
            if first_s is not None:
                mine[_FIRST_STEP] = max(first_s, mine.get(_FIRST_STEP, 0.0))
        for run, values in gauges.items():
            for name, value in values.items():
                self._gauges[name].set(value, tags={"run": run})
