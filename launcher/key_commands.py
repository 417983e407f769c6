"""`hotstart key`: make signing keys and compare those of hosts. Shows ids, never a key."""

from __future__ import annotations

import os

import click


@click.group()
def key() -> None:
    """Signing keys: what a store gives is used only where a holder of the key has written it."""


@key.command("new", epilog="\b\nExamples:\n  hotstart key new ~/.hotstart/signing.key")
@click.argument("path", metavar="PATH")
def key_new(path: str) -> None:
    """Make a file with a new signing key, which only you may read, and overwrite none."""
    from hotstart.cache.keyring import KEY_FILE_VARIABLE, create_key_file

    path = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    keyring = create_key_file(path)
    click.echo(f"made {path} with the key {keyring.ids[0]}; the id is no secret, the file is")
    click.echo("bring it to every host, by your secret store or scp, never by a bucket, and set")
    click.echo(f"there, before Ray is started: export {KEY_FILE_VARIABLE}={path}")
    click.echo("what is in the cache by now counts as unsigned, and is compiled once more")


@key.command("ids", epilog="\b\nExamples:\n  hotstart key ids\n"
             "  hotstart key ids ~/.hotstart/signing.key")  # fmt: skip
@click.argument("path", metavar="PATH", required=False)
def key_ids(path: str | None) -> None:
    """Show the ids of this host's keys, or of those in PATH: to compare hosts."""
    from hotstart.cache.keyring import load_keyring, read_key_file

    keyring = load_keyring() if path is None else read_key_file(os.path.expanduser(path))  # noqa: PTH111
    if not keyring:
        click.echo("no signing key is set")
    for index, key_id in enumerate(keyring.ids):
        click.echo(f"{key_id}  {'verifies' if index else 'signs and verifies'}")
