"""Which process owns a run, so that its death can be told on the same machine."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotstart.cache.process import boot_and_pid_namespace, is_certainly_gone, process_started


@dataclass(frozen=True)
class OwnerIdentity:
    """Which process owns a run, so that its death can be told on the same machine.

    `pid_started` is field 22 of `/proc/<pid>/stat` (clock ticks since boot): it tells a process
    from a later one of the same pid. Containers share a boot, hence `pid_namespace`. Without
    `/proc` the last three are 0 or empty and death is never certain.
    """

    host: str
    user: str
    pid: int
    pid_started: int
    boot_id: str
    pid_namespace: str

    @classmethod
    def of_this_process(cls) -> OwnerIdentity:
        """The identity of the calling process."""
        boot_id, pid_namespace = boot_and_pid_namespace()
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's uid without a name
            user = f"uid {os.getuid()}"
        pid = os.getpid()
        started = process_started(pid) or 0
        return cls(socket.gethostname(), user, pid, started, boot_id, pid_namespace)

    def sees(self, other: OwnerIdentity) -> bool:
        """Whether this process can look up the other's pid: same host, boot and pid namespace."""
        return bool(self.boot_id and self.pid_namespace and other.pid_started) and (
            (self.host, self.boot_id, self.pid_namespace)
            == (other.host, other.boot_id, other.pid_namespace)
        )

    def knows_dead(self, other: OwnerIdentity) -> bool:
        """Whether the other process is certainly dead; False where it can't be told."""
        return self.sees(other) and is_certainly_gone(other.pid, other.pid_started)


def identity_from(facts: Mapping[str, Any] | None) -> OwnerIdentity | None:
    """The identity in a claim, or None where it can't be read."""
    types = {"host": str, "user": str, "pid": int, "pid_started": int}
    types |= {"boot_id": str, "pid_namespace": str}
    if facts is None or not all(isinstance(facts.get(k), t) for k, t in types.items()):
        return None
    if not 0 < facts["pid"] < 2**31:  # 0 and below would ask about process groups
        return None
    return OwnerIdentity(**{k: facts[k] for k in types})
