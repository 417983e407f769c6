"""A store in a Google Cloud Storage bucket.

Every operation is one request of the JSON API, retried by `hotstart.cache.retry` alone.
https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from hotstart.cache.errors import AccessDenied, StoreMissing
from hotstart.cache.gcs_answers import (
    NotFound,
    PreconditionFailed,
    RangeNotThere,
    check_length,
    object_stat,
    parse,
)
from hotstart.cache.gcs_client import GcsClient, prepare
from hotstart.cache.retry import retry_policy
from hotstart.cache.store import (
    Count,
    ObjectStat,
    check_name,
    count_nothing,
    normalize_location,
)

LIST_PAGE_SIZE = 1000

T = TypeVar("T")


class GcsStore:
    """Objects under `gs://bucket/prefix`. Safe among threads and processes, also after a fork.

    Nothing touches the network, or imports gcsfs, before the first operation. Credentials are
    found as gcsfs finds them; with `STORAGE_EMULATOR_HOST` set when the store is made, requests
    go there without any. `deadline_s` bounds each operation with all its retries (each page of a
    listing is an operation), transfers under way included; a try that takes much of it is given
    up for another (`try_timeout_s`). `count` is told of `retries` before each of them, and of
    the seconds `retry_s` that failed tries and the waits after them took. All operations block
    and raise `StoreError`.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_s: float = 30.0,
        count: Count = count_nothing,
    ) -> None:
        self._url = normalize_location(url)
        self._bucket, _, prefix = self._url.removeprefix("gs://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._deadline_s = deadline_s
        self._count = count
        self._client = GcsClient(emulator=os.environ.get("STORAGE_EMULATOR_HOST", ""))
        self._bucket_was_seen = False

    @property
    def url(self) -> str:
        """`gs://bucket/prefix`."""
        return self._url

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none.

        One request; the first miss of a store that has seen no success yet takes a second one,
        to tell an absent object from an absent bucket. A body that stays shorter than the server
        says raises `TransientError`.
        """
        action, key = self._action("read", name), self._key(name)

        def attempt(timeout_s: float) -> bytes:
            headers, body = self._request(
                action, timeout_s, "GET", "b/{}/o/{}", self._bucket, key, alt="media"
            )
            check_length(action, headers, body)
            return body

        return self._run(action, attempt, self._deadline())

    def read_head(self, name: str, size_bytes: int) -> bytes | None:
        """The object's first bytes, `size_bytes` at most, or None. Requests as for `get`.

        https://cloud.google.com/storage/docs/json_api/v1/objects/get#range
        """
        action, key = self._action("read", name), self._key(name)

        def attempt(timeout_s: float) -> bytes:
            _, body = self._request(
                action,
                timeout_s,
                "GET",
                "b/{}/o/{}",
                self._bucket,
                key,
                headers={"Range": f"bytes=0-{size_bytes - 1}"},
                alt="media",
            )
            return body[:size_bytes]

        try:
            return self._run(action, attempt, self._deadline())
        except RangeNotThere:  # an empty object has no first byte
            return b""

    def create(self, name: str, data: bytes) -> bool:
        """Create the object; True if this call made it, False if another's is already there.

        One request, whatever the size: a multipart upload with `ifGenerationMatch=0`. Where the
        name is taken, a second request reads who wrote it, because the answer to our own write
        may have been lost on the way. https://cloud.google.com/storage/docs/request-preconditions
        """
        action, deadline = self._action("create", name), self._deadline()
        writer = uuid.uuid4().hex
        content_type, body = _multipart(
            {"name": self._key(name), "metadata": {"writer": writer}}, data
        )

        def attempt(timeout_s: float) -> bool:
            try:
                self._request(
                    action,
                    timeout_s,
                    "POST",
                    "upload/b/{}/o",
                    self._bucket,
                    headers={"Content-Type": content_type},
                    data=body,
                    uploadType="multipart",
                    ifGenerationMatch="0",
                    fields="generation",
                )
            except PreconditionFailed:
                return False
            return True

        denied: AccessDenied | None = None
        try:
            created = self._run(action, attempt, deadline)
        except AccessDenied as error:
            # To upload to a name that is taken needs the right to delete, so a role without it
            # may get this in place of the failed precondition.
            denied, created = error, False
        if created is None:
            raise self._missing(action)
        if created:
            return True
        found = self._describe(name, deadline)
        if denied is not None and found is None:
            raise denied
        return found is not None and found.get("metadata", {}).get("writer") == writer

    def delete(self, name: str, generation: int) -> bool:
        """Delete the object if it still is of this generation; False if it is not there or newer.

        One request. Where the answer to it was lost, the retry finds nothing and says False.
        """
        action, key = self._action("delete", name), self._key(name)

        def attempt(timeout_s: float) -> bool:
            try:
                self._request(
                    action,
                    timeout_s,
                    "DELETE",
                    "b/{}/o/{}",
                    self._bucket,
                    key,
                    ifGenerationMatch=str(generation),
                )
            except PreconditionFailed:
                return False
            return True

        return bool(self._run(action, attempt, self._deadline()))

    def renew(self, name: str, generation: int) -> bool:
        """Give the object a new generation if it still is of this one; False if gone or newer.

        One request, with which the bucket rewrites it over itself; needs the right to delete.
        Where the answer to it was lost, the retry finds another generation and says False.
        https://cloud.google.com/storage/docs/json_api/v1/objects/rewrite
        """
        action, key = self._action("renew", name), self._key(name)
        token: str | None = None

        def attempt(timeout_s: float) -> dict[str, Any]:
            try:
                _, body = self._request(
                    action,
                    timeout_s,
                    "POST",
                    "b/{}/o/{}/rewriteTo/b/{}/o/{}",
                    self._bucket,
                    key,
                    self._bucket,
                    key,
                    ifGenerationMatch=str(generation),
                    ifSourceGenerationMatch=str(generation),
                    rewriteToken=token,
                    fields="done,rewriteToken",
                )
            except PreconditionFailed:
                return {"done": True, "is_newer": True}
            return parse(action, body)

        deadline = self._deadline()
        while True:  # a large object takes several where its class changes; here one does
            answer = self._run(action, attempt, deadline)
            if answer is None or answer.get("is_newer"):
                return False
            if answer.get("done", True):
                return True
            token = answer.get("rewriteToken")

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """All objects whose name starts with `prefix`, in order of name.

        One request for each 1000 objects, sent as the iterator gets there.
        """
        action = self._action("list", prefix)
        token: str | None = None
        while True:
            attempt = self._page_request(action, self._prefix + prefix, LIST_PAGE_SIZE, token)
            page = self._run(action, attempt, self._deadline())
            if page is None:
                raise self._missing(action)
            for item in page.get("items", ()):
                name = item["name"].removeprefix(self._prefix)
                if _is_name(name):  # a console's folder markers end in a slash
                    yield object_stat(name, item)
            token = page.get("nextPageToken")
            if token is None:
                return

    def stat(self, name: str) -> ObjectStat | None:
        """What is known of the object, or None where there is none. Requests as for `get`."""
        found = self._describe(name, self._deadline())
        return None if found is None else object_stat(name, found)

    def _describe(self, name: str, deadline: float) -> dict[str, Any] | None:
        action, key = self._action("look up", name), self._key(name)

        def attempt(timeout_s: float) -> dict[str, Any]:
            _, body = self._request(
                action,
                timeout_s,
                "GET",
                "b/{}/o/{}",
                self._bucket,
                key,
                fields="size,generation,updated,metadata",
            )
            return parse(action, body)

        return self._run(action, attempt, deadline)

    def _page_request(
        self, action: str, key_prefix: str, size: int, token: str | None
    ) -> Callable[[float], dict[str, Any]]:
        def attempt(timeout_s: float) -> dict[str, Any]:
            _, body = self._request(
                action,
                timeout_s,
                "GET",
                "b/{}/o",
                self._bucket,
                prefix=key_prefix,
                maxResults=size,
                pageToken=token,
                fields="items(name,size,generation,updated),nextPageToken",
            )
            return parse(action, body)

        return attempt

    def _run(self, action: str, attempt: Callable[[float], T], deadline: float) -> T | None:
        """Try until it succeeds or `deadline` has come; None where the object is not there.

        A 404 names an object or the bucket without saying which of them it means.
        """
        answer = self._retry(attempt, deadline)
        if answer is None and not self._bucket_was_seen:
            look = self._page_request(f"look for gs://{self._bucket}", self._prefix, 1, None)
            try:
                if self._retry(look, deadline) is None:
                    raise self._missing(action)
            except AccessDenied:
                pass  # the bucket is there, but who reads objects may not be let to list them
        self._bucket_was_seen = True
        return answer

    def _retry(self, attempt: Callable[[float], T], deadline: float) -> T | None:
        policy = retry_policy(
            deadline_s=deadline - time.monotonic(),
            on_retry=lambda: self._count(retries=1),
            on_lost=lambda lost_s: self._count(retry_s=lost_s),
        )
        try:
            return policy(lambda: attempt(max(0.0, deadline - time.monotonic())))
        except NotFound:
            return None

    def _request(
        self, action: str, timeout_s: float, method: str, path: str, *path_parts: str, **more: Any
    ) -> tuple[Mapping[str, str], bytes]:
        return self._client.request(
            action, timeout_s, method, path, *path_parts, operation_s=self._deadline_s, **more
        )

    def _deadline(self) -> float:
        with contextlib.suppress(Exception):  # the request says what is wrong
            prepare()  # importing is no part of the operation's time
        return time.monotonic() + self._deadline_s

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _action(self, verb: str, name: str) -> str:
        return f"{verb} gs://{self._bucket}/{self._prefix}{name}"

    def _missing(self, action: str) -> StoreMissing:
        return StoreMissing(
            f"cannot {action}: there is no bucket gs://{self._bucket}; create it "
            f"(hotstart bucket create gs://{self._bucket} --run-length 10d) or correct the location"
        )


def _multipart(metadata: Mapping[str, object], data: bytes) -> tuple[str, bytes]:
    """The content type and the body of a multipart upload.

    gcsfs has its own, which parts by a fixed string that may occur in `data`.
    https://cloud.google.com/storage/docs/uploading-objects#rest-upload-objects
    """
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
        f"{json.dumps(metadata)}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/related; boundary={boundary}", body


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True
