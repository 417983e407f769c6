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
from hotstart.cache.errors import (
    AccessDenied,
    DeadlineExceeded,
    StoreError,
    StoreMissing,
    TransientError,
)
from hotstart.cache.gcs_answers import NotFound, PreconditionFailed, Taken, parse
from hotstart.cache.gcs_client import GcsClient, prepare
from hotstart.cache.retry import retry_policy

_LOOK_S = 5.0


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

    def create(self, resource: Mapping[str, Any], project: str) -> bool | None:
        """Make the bucket in a project; False where the name is taken, by whomever.

        None where an answer was lost and the bucket is there: it may have been made by this.
        """
        lost: list[TransientError] = []
        try:
            self._send(
                f"create {self.url} in project {project}",
                "POST",
                "b",
                content=resource,
                lost=lost,
                project=project,
            )
        except Taken:
            return None if lost else False
        except DeadlineExceeded as error:
            otherwise = f"hotstart bucket check {self.url} tells whether it was made"
            if self._look(error, otherwise) is not None:
                return None
            raise StoreError(f"{error}; there is no bucket {self.url} now") from error
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; buckets are made with storage.buckets.create, which roles/storage.admin "
                "has"
            ) from error
        except NotFound as error:
            raise StoreError(f"{error}: is there a project {project}?") from error
        return True

    def patch(self, changes: Mapping[str, Any], metageneration: int) -> None:
        """Change settings that still are as they were read.

        Of lists, such as the lifecycle's rules, the new one takes the place of the old. Where an
        answer was lost they are read again: it is an error only if they are not so then.
        """
        action = f"change the settings of {self.url}"
        lost: list[TransientError] = []
        try:
            self._send(
                action,
                "PATCH",
                "b/{}",
                self.name,
                content=changes,
                lost=lost,
                ifMetagenerationMatch=str(metageneration),
                projection="noAcl",
            )
        except AccessDenied as error:
            raise AccessDenied(
                f"{error}; settings are changed with storage.buckets.update, which "
                "roles/storage.admin has"
            ) from error
        except PreconditionFailed as error:
            if lost and _holds(self.read(), changes):
                return
            raise StoreError(
                f"cannot {action}: somebody else has changed them just now; look again"
            ) from error
        except DeadlineExceeded as error:
            now = self._look(error, "look again: they may have been changed")
            if now is None or not _holds(now, changes):
                raise StoreError(f"{error}; the change is not there now") from error

    def _look(self, error: StoreError, otherwise: str) -> dict[str, Any] | None:
        """The resource after the last answer was lost too, None without a bucket."""
        try:
            return GcsBucket(self.name, deadline_s=min(self._deadline_s, _LOOK_S)).read()
        except StoreMissing:
            return None
        except StoreError:
            raise StoreError(f"{error}; {otherwise}") from error

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
        lost: list[TransientError] | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        with contextlib.suppress(Exception):  # the request says what is wrong
            prepare()  # importing is no part of the operation's time
        deadline = time.monotonic() + self._deadline_s
        data = None if content is None else json.dumps(content).encode()

        def attempt() -> dict[str, Any]:
            try:
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
            except TransientError as error:
                if lost is not None:  # it may have been done all the same
                    lost.append(error)
                raise

        return retry_policy(deadline_s=self._deadline_s)(attempt)


def _holds(resource: Any, changes: Any) -> bool:
    """Whether a resource has all that a patch sets."""
    if isinstance(changes, Mapping):
        return isinstance(resource, Mapping) and all(
            _holds(resource.get(key), value) for key, value in changes.items()
        )
    return bool(resource == changes)
