"""Runs another script, unchanged, as `python SCRIPT ARGS` would; JAX's compilations are counted."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import compile_counter  # noqa: E402

if __name__ == "__main__":
    compile_counter.install(print_at_exit=True)
    script, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = script
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
