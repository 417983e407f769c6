"""Run the user's program as the interpreter itself would: `python script.py`, `module:function`.

A script is `__main__`, on the main thread, with its own folder first on the path, so that
pickling, `multiprocessing` (which finds the main module by its file) and relative data files
work as they do without a launcher. A function is called without arguments, as a console script is,
with `args` in `sys.argv`; an integer that it returns is the exit code.
"""

from __future__ import annotations

import builtins
import importlib
import io
import os
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from hotstart.launcher.plan import Program


def run_program(program: Program) -> None:
    """Run it to its end; what it raises, `SystemExit` included, is raised here."""
    if os.path.isdir(program.folder):  # noqa: PTH112 - on another host it need not exist
        os.chdir(program.folder)
    sys.path[:0] = [entry for entry in program.path if entry not in sys.path[:1]]
    args = [*program.args]
    if program.resume_if is not None and os.path.exists(program.resume_if):  # noqa: PTH110
        args += program.resume_args
    if program.script is not None:
        sys.argv = [program.script, *args]
        _run_script(program.script)
        return
    module_name, _, attribute = (program.entrypoint or "").partition(":")
    sys.argv = [program.entrypoint or "", *args]
    function: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        function = getattr(function, part)
    result = function()
    if isinstance(result, int) and not isinstance(result, bool) and result != 0:
        raise SystemExit(result)


def print_traceback(error: Exception) -> None:
    """Print an error of the user's program as the interpreter would, without hotstart's frames."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OWN_FILES:
        traceback = traceback.tb_next
    if traceback is None and not isinstance(error, SyntaxError):  # no frame of the program's
        traceback = error.__traceback__
    shown = error.with_traceback(traceback)  # the hook looks only there
    sys.excepthook(type(shown), shown, shown.__traceback__)


def _run_script(path: str) -> None:
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    with io.open_code(str(Path(path))) as source:
        code = compile(source.read(), path, "exec")
    exec(code, main.__dict__)


_OWN_FILES = {__file__, str(Path(__file__).with_name("worker.py"))}
