"""What is wrong with a job file, in one line.

ConfigError    key, file and line say where; the message says what and what to do next
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class ConfigError(Exception):
    """The job as given cannot be run; the message is one line that a user can act on.

    `key` is the dotted key, `file` the file as the user named it, `line` counts from 1; each
    is None where there is none (a setting of the command line has no file).
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(message)
        self.key = key
        self.file = file
        self.line = line


@dataclass(frozen=True)
class Origin:
    """Where a setting came from: `label` for the report, `where` in front of an error."""

    label: str
    where: str
    file: str | None = None
    line: int | None = None

    def error(self, text: str, *, key: str | None = None, named: bool = True) -> ConfigError:
        """The error `where: key: text`; with `named` off the key is left out of the message."""
        parts = [self.where, key, text] if named and key else [self.where, text]
        message = "".join(map(_printable, ": ".join(parts)))
        return ConfigError(message, key=key, file=self.file, line=self.line)


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate spelled most like `name`, upper and lower case alike, or None."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.65)
    return by_folded[close[0]] if close else None


def shown(value: object) -> str:
    """A value as a message shows it: one line, quoted, of bounded length."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def dotted(path: Iterable[str]) -> str:
    """A key as a message shows it: `cache.location`; quoted where it holds odd characters."""
    key = ".".join(path)
    return key if key.isprintable() and key and len(key) <= 80 else shown(key)
