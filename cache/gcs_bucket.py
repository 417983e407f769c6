"""A bucket as a whole: its settings, not what is in it.

https://cloud.google.com/storage/docs/json_api/v1/buckets
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from hotstart.cache.bucket import PERMISSIONS
from hotstart.cache.errors import AccessDenied, StoreError, StoreMissing
from hotstart.cache.gcs_answers import NotFound, PreconditionFailed, Taken, parse
from hotstart.cache.gcs_client import GcsClient, prepare
from hotstart.cache.retry import retry_policy


class GcsBucket:
    """The bucket `gs://name`, there or not.

    Each operation is one request with its retries, within `deadline_s`. All block and raise
    `StoreError`. Credentials and `STORAGE_EMULATOR_HOST` as for `GcsStore`.
    """

    def __init__(self, name: str, *, deadline_s: float = 20.0) -> None:
        self.name = name
        self._deadline_s = deadline_s
        self._client = GcsClient(emulator=os.environ.get("STORAGE_EMULATOR_HOST", ""))

    @property
    def url(self) -> str:
        """`gs://name`."""
        return f"gs://{self.name}"

    def read(self) -> dict[str, Any]:
        """The bucket's resource. Raises `StoreMissing`, and `AccessDenied` with what is needed."""
        action = f"read the settings of {self.url}"
        try:
            return self._send(action, "GET", "b/{}", self.name, projection="noAcl")
        except NotFound as error:
            raise StoreMissing(
                f"there is no bucket {self.url}; make it with hotstart bucket create {self.url}, "
                "or correct the name"
            ) from error
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; settings are read with storage.buckets.get, which "
                "roles/storage.bucketViewer and roles/storage.admin have"
            ) from error

    def create(self, resource: Mapping[str, Any], project: str) -> bool:
        """Make the bucket in a project; False where the name is taken, by whomever."""
        try:
            self._send(
                f"create {self.url} in project {project}",
                "POST",
                "b",
                content=resource,
                project=project,
            )
        except Taken:
            return False
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; buckets are made with storage.buckets.create, which roles/storage.admin "
                "has"
            ) from error
        except NotFound as error:
            raise StoreError(f"{error}: is there a project {project}?") from error
        return True

    def patch(self, changes: Mapping[str, Any], metageneration: int) -> dict[str, Any]:
        """Change settings that still are as they were read; the resource after that.

        Of lists, such as the lifecycle's rules, the new one takes the place of the old.
        """
        action = f"change the settings of {self.url}"
        try:
            return self._send(
                action,
                "PATCH",
                "b/{}",
                self.name,
                content=changes,
                ifMetagenerationMatch=str(metageneration),
                projection="noAcl",
            )
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; settings are changed with storage.buckets.update, which "
                "roles/storage.admin has"
            ) from error
        except PreconditionFailed as error:
            raise StoreError(
                f"cannot {action}: somebody else has changed them just now; look again"
            ) from error

    def permissions(self) -> frozenset[str] | None:
        """Those of `PERMISSIONS` that this identity has on the bucket itself.

        None where the store can't say, as an emulator.
        """
        action = f"ask for this identity's permissions on {self.url}"
        try:
            found = self._send(
                action, "GET", "b/{}/iam/testPermissions", self.name, permissions=PERMISSIONS
            )
        except NotFound:
            return None
        except AccessDenied:
            return frozenset()
        return frozenset(found.get("permissions", ()))

    def in_project(self, project: str) -> bool | None:
        """Whether it is one of the buckets of a project; None where that can't be listed."""
        action = f"list the buckets of {project}"
        try:
            found = self._send(
                action, "GET", "b", project=project, prefix=self.name, fields="items(name)"
            )
        except (AccessDenied, NotFound):
            return None
        return any(item["name"] == self.name for item in found.get("items", ()))

    def _send(
        self,
        action: str,
        method: str,
        path: str,
        *path_parts: str,
        content: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        with contextlib.suppress(Exception):  # the request says what is wrong
            prepare()  # importing is no part of the operation's time
        deadline = time.monotonic() + self._deadline_s
        data = None if content is None else json.dumps(content).encode()

        def attempt() -> dict[str, Any]:
            _, body = self._client.request(
                action,
                max(0.0, deadline - time.monotonic()),
                method,
                path,
                *path_parts,
                headers=None if data is None else {"Content-Type": "application/json"},
                data=data,
                operation_s=self._deadline_s,
                **parameters,
            )
            return parse(action, body)

        return retry_policy(deadline_s=self._deadline_s)(attempt)
