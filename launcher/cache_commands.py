"""`hotstart cache`: look after a cache, whoever fills it. None of it needs Ray or JAX."""

from __future__ import annotations

import click

from hotstart.launcher.explain_commands import explain, warm
from hotstart.launcher.export_command import export
from hotstart.launcher.gc_command import gc
from hotstart.launcher.import_command import import_
from hotstart.launcher.list_command import ls
from hotstart.launcher.pin_commands import pin, unpin
from hotstart.launcher.show_command import show
from hotstart.launcher.stats_command import stats
from hotstart.launcher.verify_command import verify


@click.group()
def cache() -> None:
    """Look after a cache: a directory or gs://bucket/prefix."""


for command in (ls, stats, show, explain, warm, verify, gc, pin, unpin, export, import_):
    cache.add_command(command)
