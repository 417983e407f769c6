"""Secrets of a job by reference: `secret_env: {NAME: file:/path, OTHER: env:VARIABLE}`.

Only the reference is in the job file, the record, the command line and Ray's job. Each host's
agent looks it up when it composes its workers' environments, so the value goes from the host
straight into the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hotstart.launcher.errors import SecretUnavailable

_LIMIT_BYTES = 100_000  # Linux takes 128 KiB for one variable


def resolve_secrets(references: Mapping[str, str], host: Mapping[str, str]) -> dict[str, str]:
    """The secrets themselves, on the host that has them; `host` is its environment.

    One newline at a file's end is not part of it. Raises `SecretUnavailable`, which names the
    reference and never what it leads to.
    """
    return {name: _resolve(name, text, host) for name, text in references.items()}


def _resolve(name: str, reference: str, host: Mapping[str, str]) -> str:
    where = f"secret_env.{name}: {reference}"
    kind, _, target = reference.partition(":")
    if kind == "env":
        if target not in host:
            raise SecretUnavailable(
                f"{where}: this host's environment lacks it; set it where Ray is started there"
            )
        return host[target]
    try:
        with Path(target).open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise SecretUnavailable(
            f"{where}: {error.strerror}; bring the file to each host that runs workers"
        ) from None
    if len(data) > _LIMIT_BYTES or b"\0" in data:
        raise SecretUnavailable(f"{where}: not text of at most {_LIMIT_BYTES} bytes")
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise SecretUnavailable(f"{where}: not UTF-8 text") from None
