"""Which process made a lease's claim, so that its death can be told, and need be told once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass, fields

from hotstart.cache.process import boot_and_pid_namespace, is_certainly_gone, process_started


@dataclass(frozen=True)
class Holder:
    """Which process made a claim. See proc_pid_stat(5) for `started`, in clock ticks since boot.

    `where` names the boot and the pid namespace: pids of others can't be looked up. Without
    `/proc` it is empty, and death is never certain. `owner` is common to all the leases that beat
    on one thread.
    """

    holder: str = "another process"
    id: str = ""
    where: str = ""
    pid: int = 0
    started: int = 0
    owner: str = ""

    @classmethod
    def of_this_process(cls, lease_id: str, owner: str = "") -> Holder:
        """The calling process; `lease_id` tells its leases apart."""
        pid = os.getpid()
        holder = f"{socket.gethostname()}/{pid}"
        return cls(holder, lease_id, _where(), pid, process_started(pid) or 0, owner)

    @classmethod
    def read(cls, claim: bytes | None) -> Holder:
        """Read a claim; what can't be read is another process."""
        with contextlib.suppress(ValueError, TypeError):
            found = cls(**json.loads(claim or b""))
            if all(type(getattr(found, f.name)) is type(f.default) for f in fields(cls)):
                return found
        return cls()

    def claim(self) -> bytes:
        """The bytes that `read` reads."""
        return json.dumps(asdict(self)).encode()

    def is_certainly_dead(self) -> bool:
        """Whether it was a process that could be seen from here, and is gone."""
        # 0 and below would ask about process groups.
        if not (self.where and self.started and 0 < self.pid < 2**31) or self.where != _where():
            return False
        return is_certainly_gone(self.pid, self.started)


class LostOwners:
    """Who has been seen to give no sign for a time to live, up to when by the store's own clock.

    A cluster that died leaves many leases. All of an owner's beat on one thread, so what one has
    shown holds for those that were silent as early; what an owner did later shows that it lives.
    """

    def __init__(self) -> None:
        self._last_sign_s: dict[str, float] = {}

    def note(self, holder: Holder, last_sign_s: float) -> None:
        """Nothing has come from its lease for a time to live since `last_sign_s`."""
        if holder.owner:
            self._last_sign_s[holder.owner] = last_sign_s

    def has(self, holder: Holder, last_sign_s: float, slack_s: float) -> bool:
        """Whether a lease whose last sign is as old, give or take `slack_s`, is lost with it."""
        known_s = self._last_sign_s.get(holder.owner)
        return known_s is not None and last_sign_s <= known_s + slack_s


def _where() -> str:
    boot_id, pid_namespace = boot_and_pid_namespace()
    return f"{boot_id} {pid_namespace}".strip()
