"""A look at the cluster's Python before a submitted job's driver starts there.

It goes as `python -c`, for what it looks for may not be there: the hotstart of a cluster that
is not sent one, and what hotstart depends on.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

NEEDED = ("jax", "ray", "click", "gcsfs", "omegaconf", "rich", "tenacity", "yaml", "zstandard")
_CHECK = """\
import sys, importlib.metadata as m, importlib.util as u
def end(text): sys.stderr.write("hotstart: " + text + chr(10)); sys.exit(2)
version, needed = sys.argv[1], sys.argv[2:]
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    end("%s on the cluster is Python %d.%d, and hotstart needs 3.11 to 3.13" % (sys.executable, *sys.version_info[:2]))
if version:
    try: found = m.version("hotstart")
    except m.PackageNotFoundError: end("%s on the cluster has no hotstart; submit with --hotstart ship, or install hotstart %s on every host" % (sys.executable, version))
    if found != version: end("the cluster has hotstart %s, and this job was submitted with %s; submit with --hotstart ship, or install the same version in both places" % (found, version))
missing = [name for name in needed if u.find_spec(name) is None]
if missing: end("%s on the cluster lacks %s, which hotstart needs; install them on every host, or name them in a file for --requirements" % (sys.executable, ", ".join(missing)))
"""  # noqa: E501


def arrival_check(of_the_cluster: bool, needed: Sequence[str] = NEEDED) -> list[str]:
    """A command that ends with 2 and one line where the driver could not start.

    With `of_the_cluster` hotstart itself must be installed there, in this version.
    """
    version = importlib.metadata.version("hotstart") if of_the_cluster else ""
    return ["python", "-c", _CHECK, version, *needed]
