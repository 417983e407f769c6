"""Runs another program, unchanged, with JAX's compilations counted.

The first argument is a script, run as `python SCRIPT ARGS` would, or `package.module:function`,
called as its console script would. It says first of which process its output is.
"""

import importlib
import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import compile_counter  # noqa: E402

if __name__ == "__main__":
    compile_counter.install(print_at_exit=True)
    print("program of process", os.getpid(), flush=True)
    program, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = program
    module, _, function = program.partition(":")
    if function:
        getattr(importlib.import_module(module), function)()
    else:
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
