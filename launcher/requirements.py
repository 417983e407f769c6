"""Python packages that a submitted job needs on top of the cluster's: a requirements file.

Ray's `pip` environment installs them on each host before the first process starts there; of its
two installers it is the one that needs nothing else on the hosts. It has the cluster's packages
too, in a virtual environment of its own. See
https://docs.ray.io/en/latest/ray-core/handling-dependencies.html.
"""

from __future__ import annotations

import re
from pathlib import Path

from hotstart.launcher.errors import UsageError

_OTHER_FILE = re.compile(r"-[rce]|(--requirement|--constraint|--editable)\b")
# Not a mere user name for ssh, which says nothing, nor ${NAME}, which the hosts fill in.
_PASSWORD = re.compile(r"(?<!ssh)://[^/@\s]+@|ssh://[^/@\s]*:[^/@\s]*@")
_FILLED_IN = re.compile(r"://\$\{\w+\}(:\$\{\w+\})?@")
_LOCAL = re.compile(r"\.{1,2}/|/|~")


def read_requirements(path: str) -> tuple[str, ...]:
    """The lines of a requirements file, as pip takes them, less comments; raises `UsageError`.

    What would mean nothing on a host is refused, and so is a password, which the dashboard shows.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--requirements: {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--requirements: {path} is not UTF-8 text") from error
    found = []
    for number, line in enumerate(text.replace("\\\n", " ").splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        where = f"--requirements: {path}:{number}"
        if _OTHER_FILE.match(line):
            raise UsageError(f"{where}: {line}: another file is not sent; put its lines in here")
        if local := _LOCAL.match(line):
            inside = line[local.end() :].lstrip("/") if line.startswith("./") else "NAME"
            raise UsageError(
                f"{where}: {line}: a path of this machine is none of the hosts'; keep the file in "
                "the working folder and write ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/" + inside
            )
        if _PASSWORD.search(_FILLED_IN.sub("://", line)):
            raise UsageError(
                f"{where}: a password in an address would show in Ray's dashboard; set "
                "PIP_INDEX_URL where Ray is started on each host, or ~/.netrc there"
            )
        found.append(line)
    if not found:
        raise UsageError(f"--requirements: {path} names no packages")
    return tuple(found)
