"""`build/chaos.json`: what came of each campaign of `make chaos`, one row a campaign.

Each campaign writes its own row and leaves those of the others.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CHAOS_JSON = Path(__file__).parents[2] / "build" / "chaos.json"


@dataclass(frozen=True)
class Row:
    """One campaign: its trials, what went wrong in them, and the seed that repeats it.

    crashes: processes that ended, or code that failed, where it had to go on.
    wrong_results: results other than those of an undisturbed run.
    undetected, unrepaired: bad entries that were not noticed, or not replaced; in the simulation
    waits that do not end count as unrepaired.
    lost_entries, duplicate_entries: what was stored and is gone, or was made twice.
    leaks: processes, descriptors, threads and files that were left.
    """

    campaign: str
    trials: int
    seed: int
    crashes: int = 0
    wrong_results: int = 0
    undetected: int = 0
    unrepaired: int = 0
    lost_entries: int = 0
    duplicate_entries: int = 0
    leaks: int = 0


def write_campaign(row: Row, path: Path = CHAOS_JSON) -> None:
    """Put a row in the place of the campaign's last one."""
    rows = json.loads(path.read_text()) if path.exists() else []
    others = [other for other in rows if other["campaign"] != row.campaign]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*others, asdict(row)], indent=2) + "\n")
