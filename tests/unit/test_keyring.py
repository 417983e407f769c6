"""Where signing keys come from, and what is wrong with those that can't be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotstart.cache.errors import SigningKeyError
from hotstart.cache.keyring import (
    KEY_FILE_VARIABLE,
    KEYS_VARIABLE,
    create_key_file,
    from_text,
    load_keyring,
    read_key_file,
    to_text,
)
from hotstart.cache.signing import Key, Keyring

pytestmark = pytest.mark.unit

FIRST, SECOND = Key(b"\x01" * 32), Key(b"\x02" * 32)
TEXT = {key.id: f"hotstart-key-1-{key.secret.hex()}" for key in (FIRST, SECOND)}


def key_file(folder: Path, *lines: str, mode: int = 0o600) -> str:
    path = folder / "signing.key"
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return str(path)


def test_load_keyring_without_any_setting_is_empty():
    assert load_keyring(None, {}) == Keyring()
    assert not load_keyring(None, {})


def test_key_file_first_key_signs_and_comments_are_left_out(tmp_path):
    path = key_file(tmp_path, "# new", f"{TEXT[SECOND.id]}  # since May", "", TEXT[FIRST.id])

    assert read_key_file(path) == Keyring((SECOND, FIRST))
    assert read_key_file(path).ids == (SECOND.id, FIRST.id)


def test_key_file_with_a_key_twice_holds_it_once(tmp_path):
    path = key_file(tmp_path, TEXT[FIRST.id], TEXT[FIRST.id])
    assert read_key_file(path) == Keyring((FIRST,))


def test_load_keyring_the_hosts_environment_goes_before_a_setting(tmp_path):
    path = key_file(tmp_path, TEXT[FIRST.id])
    keys = f"{TEXT[SECOND.id]},{TEXT[FIRST.id]}"

    assert load_keyring(path, {}) == Keyring((FIRST,))
    assert load_keyring("/not/there", {KEY_FILE_VARIABLE: path}) == Keyring((FIRST,))
    assert load_keyring(path, {KEYS_VARIABLE: keys}) == Keyring((SECOND, FIRST))


def test_keyring_goes_through_its_text_and_back():
    assert from_text(to_text(Keyring((SECOND, FIRST)))) == Keyring((SECOND, FIRST))
    assert from_text(to_text(Keyring())) == Keyring()


def test_create_key_file_is_for_its_owner_alone_and_overwrites_nothing(tmp_path):
    path = tmp_path / "signing.key"
    before = os.umask(0)
    try:
        made = create_key_file(str(path))
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(str(path)) == made
    kept = path.read_bytes()
    with pytest.raises(SigningKeyError, match="exists and is not overwritten"):
        create_key_file(str(path))
    assert path.read_bytes() == kept


def test_create_key_file_makes_another_key_each_time(tmp_path):
    made = {create_key_file(str(tmp_path / str(n))).ids for n in range(3)}
    assert len(made) == 3


def test_create_key_file_in_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(SigningKeyError, match="cannot be made: No such file or directory"):
        create_key_file(str(tmp_path / "no" / "signing.key"))


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o602, 0o601])
def test_key_file_that_others_may_read_or_change_is_refused(tmp_path, mode):
    path = key_file(tmp_path, TEXT[FIRST.id], mode=mode)

    with pytest.raises(SigningKeyError) as raised:
        read_key_file(path)

    assert f"(mode {mode:04o})" in str(raised.value)
    assert f"chmod 600 {path}" in str(raised.value)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_key_file_that_its_group_may_read_is_taken(tmp_path, mode):
    assert read_key_file(key_file(tmp_path, TEXT[FIRST.id], mode=mode)).ids == (FIRST.id,)


def test_key_file_that_is_a_link_as_kubernetes_mounts_it_is_taken(tmp_path):
    path = key_file(tmp_path, TEXT[FIRST.id])
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_key_file(str(link)).ids == (FIRST.id,)


def test_key_file_that_is_no_file_is_refused_without_waiting_for_a_writer(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path):
        with pytest.raises(SigningKeyError, match="is not a file"):
            read_key_file(str(path))


BROKEN = {
    "empty": ([], "no signing key in it"),
    "comments only": (["# nothing"], "no signing key in it"),
    "half a key": ([TEXT[FIRST.id], TEXT[SECOND.id][:40]], "its key 2 is none"),
    "another form": (["c2VjcmV0LXNlY3JldA=="], "its key 1 is none"),
    "upper case": ([TEXT[FIRST.id].upper()], "its key 1 is none"),
}


@pytest.mark.parametrize(("lines", "message"), BROKEN.values(), ids=BROKEN)
def test_key_file_that_holds_no_key_is_refused_and_not_quoted(tmp_path, lines, message):
    path = key_file(tmp_path, *lines)

    with pytest.raises(SigningKeyError) as raised:
        load_keyring(path, {})

    assert str(raised.value).startswith(f"signing_key_file: {path}: ")
    assert message in str(raised.value)
    assert not any(line in str(raised.value) for line in lines if line)


UNUSABLE = {
    "missing file": ({KEY_FILE_VARIABLE: "/not/there"}, "cannot be read: No such file"),
    "no path": ({KEY_FILE_VARIABLE: ""}, "cannot be read: No such file"),
    "no keys": ({KEYS_VARIABLE: ""}, f"{KEYS_VARIABLE}: no signing key in it"),
    "no key": ({KEYS_VARIABLE: "secret"}, f"{KEYS_VARIABLE}: its key 1 is none"),
    "both": ({KEY_FILE_VARIABLE: "/k", KEYS_VARIABLE: "k"}, "are both set"),
}


@pytest.mark.parametrize(("environ", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_load_keyring_what_is_set_and_unusable_is_an_error_never_no_key(environ, message):
    with pytest.raises(SigningKeyError) as raised:
        load_keyring(None, environ)

    assert message in str(raised.value)
    assert "secret" not in str(raised.value)
