from __future__ import annotations

import subprocess
import sys

import click
import pytest

from hotstart.launcher.cli import main

pytestmark = pytest.mark.unit


def test_every_command_is_found_by_its_name() -> None:
    context = click.Context(main)
    names = main.list_commands(context)
    assert len(names) == 12
    for name in names:
        command = main.get_command(context, name)
        assert command is not None and command.name == name


def test_launch_waits_for_no_other_commands_module() -> None:
    code = (
        "import sys, hotstart.launcher.cli\n"
        "print([m for m in sys.modules if m.startswith('hotstart.launcher.') "
        "and m.rpartition('_')[2] in ('command', 'commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
