"""What of a folder is sent: ignore files, links, limits, and the archive."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from hotstart.launcher import sent_files
from hotstart.launcher.errors import UsageError
from hotstart.launcher.sent_files import (
    MANIFEST,
    find_files,
    read_notes,
    shown_size,
    write_archive,
    write_kept_archive,
)

pytestmark = pytest.mark.unit


def tree(root: Path, *names: str) -> Path:
    """Files below a folder; a name that ends in `/` is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    return root


def names(root: Path, **environ: str) -> list[str]:
    return [file.name for file in find_files(root, environ).files]


def rules(root: Path, name: str, *lines: str) -> None:
    (root / name).write_text("\n".join(lines) + "\n")


def test_sent_files_by_default_leave_out_what_ray_leaves_out(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", "sub/b.py", ".git/config", "sub/__pycache__/b.pyc", ".venv/x", "venv/y")
    assert names(tmp_path) == ["a.py", "sub/b.py"]
    assert find_files(tmp_path, {}).kept_back == (".git/", ".venv/", "sub/__pycache__/", "venv/")


def test_sent_files_other_defaults_of_ray_are_obeyed(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", ".git/config", "big/x")
    assert names(tmp_path, RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES="big") == [
        ".git/config",
        "a.py",
    ]


def test_sent_files_ignore_files_of_each_folder_count_below_it(tmp_path: Path) -> None:
    tree(tmp_path, "a.log", "data/x", "src/a.py", "src/data/x", "src/out.bin", "other/out.bin")
    rules(tmp_path, ".gitignore", "*.log", "/data/")
    rules(tmp_path / "src", ".rayignore", "out.bin")
    assert names(tmp_path) == [
        *(".gitignore", "other/out.bin", "src/.rayignore", "src/a.py", "src/data/x"),
    ]


def test_sent_files_gitignore_is_left_alone_where_ray_is_told_so(tmp_path: Path) -> None:
    tree(tmp_path, "a.log", "b.tmp")
    rules(tmp_path, ".gitignore", "*.log")
    rules(tmp_path, ".rayignore", "*.tmp")
    found = names(tmp_path, RAY_RUNTIME_ENV_IGNORE_GITIGNORE="1")
    assert found == [".gitignore", ".rayignore", "a.log"]


def test_sent_files_hotstartignore_has_the_last_word_and_the_deepest_first(tmp_path: Path) -> None:
    tree(tmp_path, "vocab.txt", "big.txt", "notes.md", "sub/notes.md", "sub/c.txt")
    rules(tmp_path, ".gitignore", "*.txt")
    rules(tmp_path, ".hotstartignore", "!vocab.txt", "*.md", ".gitignore", ".hotstartignore")
    rules(tmp_path / "sub", ".hotstartignore", "!notes.md", "!c.txt")
    assert names(tmp_path) == ["sub/c.txt", "sub/notes.md", "vocab.txt"]


def test_sent_files_in_a_folder_that_is_kept_back_cannot_be_brought_back(tmp_path: Path) -> None:
    tree(tmp_path, "data/keep.txt", "a.py")
    rules(tmp_path, ".gitignore", "data/")
    rules(tmp_path, ".hotstartignore", "!data/keep.txt", ".*")
    assert names(tmp_path) == ["a.py"]
    rules(tmp_path, ".hotstartignore", "!data/", ".*")
    assert names(tmp_path) == ["a.py", "data/keep.txt"]


def test_sent_files_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tree(tmp_path / "job", "a.py", "sub/b.py")
    outside = tree(tmp_path / "outside", "shared.py")
    (root / "lib").symlink_to(outside)
    (root / "sub/up").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nothing")
    assert names(root) == ["a.py", "lib/shared.py", "sub/b.py"]
    assert find_files(root, {}).kept_back == ("gone", "sub/up/")


def test_sent_files_too_large_names_the_largest_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent_files, "LIMIT_BYTES", 1_500_000)
    for name, size in {"data/a.bin": 1_200_000, "data/b.bin": 300_000, "logs/c": 2_000}.items():
        tree(tmp_path, name)
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(UsageError) as caught:
        find_files(tmp_path, {})
    assert str(caught.value) == (
        f"{tmp_path} holds 1.5 MB in 3 files that would be sent, and a cluster takes 1.5 MB in "
        "50000; the largest folders are data/ (1.5 MB), logs/ (2.0 kB); the largest files are "
        "data/a.bin (1.2 MB), data/b.bin (300 kB), logs/c (2.0 kB); keep back what the job "
        f"doesn't read by lines in {tmp_path}/.hotstartignore, whose syntax is that of .gitignore, "
        "and put data into a bucket"
    )


def test_sent_files_too_many_are_refused_without_looking_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent_files, "LIMIT_FILES", 3)
    tree(tmp_path, "a/1", "a/2", "b/1", "b/2", "b/3")
    with pytest.raises(UsageError, match="in more than 4 files that would be sent"):
        find_files(tmp_path, {})


def test_sent_files_with_a_bad_line_names_the_ignore_file(tmp_path: Path) -> None:
    rules(tmp_path, ".gitignore", "!")
    with pytest.raises(UsageError) as caught:
        find_files(tmp_path, {})
    assert str(caught.value).startswith(f"{tmp_path}/.gitignore: ")
    assert str(caught.value).endswith("; its syntax is that of .gitignore")


def test_archive_of_the_same_files_has_the_same_bytes(tmp_path: Path) -> None:
    root = tree(tmp_path / "job", "a.py", "empty/")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    write_archive(find_files(root, {}), {"note": 1}, one)
    os.utime(root / "a.py", (1, 1))
    write_archive(find_files(root, {}), {"note": 1}, two)
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        modes = {i.filename: i.external_attr >> 16 & 0o777 for i in archive.infolist()}
    assert modes == {"a.py": 0o644, "empty/": 0o755, "run.sh": 0o755, MANIFEST: 0o644}
    assert read_notes(one) == {"note": 1, "files": ["a.py", "empty/", "run.sh"]}


def test_archive_from_where_it_was_unpacked_has_what_was_sent_only(tmp_path: Path) -> None:
    root = tree(tmp_path / "job", "a.py", "sub/b.py")
    sent, kept = tmp_path / "sent.zip", tmp_path / "kept.zip"
    write_archive(find_files(root, {}), {"note": 1}, sent)
    there = tmp_path / "there"
    with zipfile.ZipFile(sent) as archive:
        archive.extractall(there)
    tree(there, "made_by_the_job.bin", "__pycache__/a.pyc")
    assert write_kept_archive(there, kept)
    assert kept.read_bytes() == sent.read_bytes()
    assert names(there) == ["a.py", "made_by_the_job.bin", "sub/b.py"]


def test_archive_from_a_folder_that_was_not_sent_is_none(tmp_path: Path) -> None:
    assert not write_kept_archive(tree(tmp_path, "a.py"), tmp_path / "kept.zip")


def test_archive_of_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.py")).write_text("")
    with pytest.raises(UsageError, match="is not a name in UTF-8, and can't be sent"):
        write_archive(find_files(tmp_path, {}), {}, tmp_path / "a.zip")


@pytest.mark.parametrize("data", [b"no zip", b""])
def test_notes_of_what_is_no_archive_raise(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError):
        read_notes(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (104_857_600, "105 MB")]
    + [(2_500_000_000, "2.5 GB")],
)
def test_size_is_shown_as_a_person_would_say_it(size: int, shown: str) -> None:
    assert shown_size(size) == shown
