"""Runs as a process starts that a hotstart worker has spawned: see `hotstart.cache.children`.

Imports nothing of hotstart's and leaves no trace but one finder, which waits for jax: a process
that never imports it pays for this file alone. Nothing here may fail the process.
"""

import os
import sys


class _AfterJax:
    """Has the other finders find jax, and enables the cache once it has been imported."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "jax":
            return None
        for finder in list(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader):  # type: ignore[no-untyped-def]
        stock = loader.exec_module

        def exec_module(module):  # type: ignore[no-untyped-def]
            stock(module)
            if self in sys.meta_path:  # who only looks whether jax is there does not import it
                sys.meta_path.remove(self)
            _enable()

        loader.exec_module = exec_module


def _enable() -> None:
    try:
        from hotstart.cache.children import enable_here

        enable_here()
    except ModuleNotFoundError:  # another interpreter's process, which has no hotstart
        pass
    except Exception as error:
        sys.stderr.write(f"hotstart's cache is not in place in this process: {error}\n")


def _run_the_next() -> None:
    """Run the sitecustomize that this one stands in front of, as if it were not there."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - at each start
    sys.path[:] = [p for p in sys.path if not p or os.path.abspath(p) != here]  # noqa: PTH100
    ours = sys.modules.pop(__name__, None)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if ours is not None:
            sys.modules.setdefault(__name__, ours)


if os.environ.get("HOTSTART_CHILD_CACHE"):
    sys.meta_path.insert(0, _AfterJax())
_run_the_next()
