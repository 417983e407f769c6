"""Whether this is a machine of Google Cloud, and which, as its metadata server says, if soon.

https://cloud.google.com/compute/docs/metadata/querying-metadata

Elsewhere nothing answers at that address, and gcsfs looks for 15 s where it finds no credentials:
`stop_looking` spares it that.
"""

from __future__ import annotations

import http.client
import logging
import os
import time
import urllib.request
from dataclasses import dataclass

CONNECT_S = 1.0
_ADDRESS = "169.254.169.254"
_FLAVOR = "Metadata-Flavor"


@dataclass(frozen=True)
class GoogleMachine:
    """A virtual machine's project, by id and number, its zone, and its service account's email.

    Empty where the server doesn't say.
    """

    project: str = ""
    project_number: str = ""
    zone: str = ""
    service_account: str = ""

    @property
    def region(self) -> str:
        """The zone's region: `us-central1` of `us-central1-a`."""
        return self.zone.rpartition("-")[0]


def this_machine(timeout_s: float = CONNECT_S) -> GoogleMachine | None:
    """This machine's facts, or None where it is none of Google Cloud, within `timeout_s`.

    Asks the server that google-auth would: `GCE_METADATA_HOST`, and none with `NO_GCE_CHECK=true`.
    """
    if os.environ.get("NO_GCE_CHECK") == "true":
        return None
    deadline = time.monotonic() + timeout_s
    number = _ask("project/numeric-project-id", deadline)
    if number is None:
        return None
    zone = _ask("instance/zone", deadline) or ""
    return GoogleMachine(
        project=_ask("project/project-id", deadline) or "",
        project_number=number,
        zone=zone.rpartition("/")[2],
        service_account=_ask("instance/service-accounts/default/email", deadline) or "",
    )


def stop_looking() -> None:
    """Have this process look for no metadata server, or not for long; before gcsfs is imported.

    gcsfs honors the first variable, google-auth, which it asks before, the other two. Who calls
    this says in his own words what is missing, so google-auth's warning is kept back.
    """
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    os.environ.setdefault("NO_GCE_CHECK", "true")
    os.environ.setdefault("GCE_METADATA_TIMEOUT", "1")
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")


def _ask(path: str, deadline: float) -> str | None:
    host = os.environ.get("GCE_METADATA_HOST") or _ADDRESS
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/{path}", headers={_FLAVOR: "Google"}
    )
    # Past any proxy: the address is this link's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        left_s = max(0.01, deadline - time.monotonic())
        with opener.open(request, timeout=left_s) as answer:
            if answer.headers.get(_FLAVOR) != "Google":
                return None
            return answer.read(4096).decode(errors="replace").strip()
    except (OSError, ValueError, http.client.HTTPException):  # urllib's own are OSErrors
        return None
