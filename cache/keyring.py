"""Where a host's signing keys come from: a file of its own, or its environment; never from a store.

    HOTSTART_SIGNING_KEY_FILE   the path of a key file
    HOTSTART_SIGNING_KEYS       the keys themselves, apart by spaces, commas or lines
    `signing_key_file`          a path that a setting names: where neither of the two is set

A key file has one key a line, `hotstart-key-1-` and 64 hex digits; `#` begins a comment. The
first key signs, all verify. The host's environment wins, since a setting may have come from a
bucket (a run's job.yaml). What is set and can't be used is an error, never "no key": else who
can make a file unreadable could turn signing off. No message has a key in it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from hotstart.cache.errors import SigningKeyError
from hotstart.cache.signing import SECRET_BYTES, Key, Keyring

KEY_FILE_VARIABLE = "HOTSTART_SIGNING_KEY_FILE"
KEYS_VARIABLE = "HOTSTART_SIGNING_KEYS"
_FORM = "hotstart-key-1-"
_KEY = re.compile(re.escape(_FORM) + rf"([0-9a-f]{{{2 * SECRET_BYTES}}})")
_MAX_FILE_BYTES = 1 << 16


def load_keyring(path: str | None = None, environ: Mapping[str, str] | None = None) -> Keyring:
    """This host's keys; empty where none are set. `path` is where a setting says that they are.

    Reads one small file at most. Raises `SigningKeyError`.
    """
    environ = os.environ if environ is None else environ
    file, text = environ.get(KEY_FILE_VARIABLE), environ.get(KEYS_VARIABLE)
    if file is not None and text is not None:
        raise SigningKeyError(
            f"{KEY_FILE_VARIABLE} and {KEYS_VARIABLE} are both set; unset one of them"
        )
    if text is not None:
        return _parse(re.split(r"[\s,]+", text.strip()), KEYS_VARIABLE)
    if file is not None:
        return read_key_file(file, KEY_FILE_VARIABLE)
    return Keyring() if path is None else read_key_file(path, "signing_key_file")


def read_key_file(path: str, source: str = "key file") -> Keyring:
    """The keys in a file. Raises `SigningKeyError`, also where others may read or change it.

    Its group may read it, as with a secret that Kubernetes mounts. `source` is who named it.
    """
    try:
        # Not blocking on a pipe that somebody has put there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a usable path"
        raise SigningKeyError(
            f"{source}: the signing key file {path} cannot be read: {why}; "
            "make one with `hotstart key new PATH` and bring it to every host"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SigningKeyError(f"{source}: the signing key file {path} is not a file")
        mode = stat.S_IMODE(found.st_mode)
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise SigningKeyError(
                f"{source}: others may read or change the signing key file {path} (mode {mode:04o})"
                f"; run: chmod 600 {path}, and if others could read it, make a new key"
            )
        text = os.read(descriptor, _MAX_FILE_BYTES).decode(errors="replace")
    finally:
        os.close(descriptor)
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return _parse([line for line in lines if line], f"{source}: {path}")


def create_key_file(path: str) -> Keyring:
    """Make a file with a new key, for its owner alone, and give the key's ring back.

    Raises `SigningKeyError` where the file is there already, or can't be made.
    """
    key = Key(secrets.token_bytes(SECRET_BYTES))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise SigningKeyError(
            f"{path} exists and is not overwritten: what was signed with its keys could not be "
            "read any more; give another path"
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a usable path"
        raise SigningKeyError(f"{path} cannot be made: {why}") from error
    try:
        with open(descriptor, "w") as file:
            file.write(f"# hotstart signing key {key.id}: keep it secret\n{_shown(key)}\n")
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        raise SigningKeyError(f"{path} cannot be written: {error.strerror}") from error
    return Keyring((key,))


def to_text(keyring: Keyring) -> str:
    """The secret form that `from_text` reads: for a private channel to a process, nothing else."""
    return " ".join(map(_shown, keyring.keys))


def from_text(text: str) -> Keyring:
    """The inverse of `to_text`."""
    return _parse(text.split(), "the agent") if text else Keyring()


def _shown(key: Key) -> str:
    return f"{_FORM}{key.secret.hex()}"


def _parse(words: list[str], source: str) -> Keyring:
    keys: dict[str, Key] = {}
    for number, word in enumerate(words, start=1):
        match = _KEY.fullmatch(word)
        if match is None and word:
            raise SigningKeyError(
                f"{source}: its key {number} is none; a key is {_FORM} and {2 * SECRET_BYTES} "
                "hex digits, as `hotstart key new PATH` writes it"
            )
        if match is not None:
            key = Key(bytes.fromhex(match[1]))
            keys.setdefault(key.id, key)
    if not keys:
        raise SigningKeyError(f"{source}: no signing key in it; unset it to work without one")
    return Keyring(tuple(keys.values()))
