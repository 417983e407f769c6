"""The example's training script with JAX's own two functions counted from outside of hotstart."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "bytelm"
sys.path[:0] = [str(EXAMPLE), str(ROOT)]

from tests.support import compile_counter  # noqa: E402

if __name__ == "__main__":
    compile_counter.install(print_at_exit=True)
    runpy.run_path(str(EXAMPLE / "train.py"), run_name="__main__")
