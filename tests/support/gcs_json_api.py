"""A stand-in for what the JSON API of Google Cloud Storage knows of buckets, in this process.

The emulator drops lifecycle rules, soft delete and most other settings, and knows no
permissions. This keeps a bucket's resource as Google documents it, refuses fields and values that
it doesn't know, and answers 400, 403, 404, 409 and 412 where Google does:
https://cloud.google.com/storage/docs/json_api/v1/buckets
It knows nothing but buckets; requests for objects go on to the emulator that is given.
Written from the documentation, not recorded from Google: see docs/google-cloud.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

ALL = frozenset(
    {
        *("storage.buckets.get", "storage.buckets.update", "storage.buckets.list"),
        "storage.buckets.create",
        *("storage.objects.get", "storage.objects.list", "storage.objects.create"),
        "storage.objects.delete",
    }
)
_REGIONS = {"US-CENTRAL1", "US-EAST1", "EUROPE-WEST4"}
_TYPES = {"US": "multi-region", "EU": "multi-region", "NAM4": "dual-region", "EUR4": "dual-region"}
_CLASSES = {"STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"}
_WRITABLE = {
    "autoclass": {"enabled", "terminalStorageClass"},
    "billing": {"requesterPays"},
    "iamConfiguration": {"uniformBucketLevelAccess", "publicAccessPrevention"},
    "labels": None,
    "lifecycle": {"rule"},
    "retentionPolicy": {"retentionPeriod"},
    "softDeletePolicy": {"retentionDurationSeconds"},
    "storageClass": None,
    "versioning": {"enabled"},
}
_CONDITIONS = {
    "age": int,
    "createdBefore": str,
    "customTimeBefore": str,
    "daysSinceCustomTime": int,
    "daysSinceNoncurrentTime": int,
    "isLive": bool,
    "matchesPrefix": list,
    "matchesStorageClass": list,
    "matchesSuffix": list,
    "noncurrentTimeBefore": str,
    "numNewerVersions": int,
}
_ACTIONS = {"Delete", "SetStorageClass", "AbortIncompleteMultipartUpload"}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


@dataclass
class GcsJsonApi:
    """A running stand-in; `url` is what `STORAGE_EMULATOR_HOST` wants.

    projects: those of this identity, with their numbers. permissions: what it may do in each
    bucket that is not in `foreign`, where it may do nothing. requests: method and path of all
    that was asked about buckets. lost: how many of the next answers to what makes or changes a
    bucket are lost on their way, after it has been done.
    """

    url: str = ""
    projects: dict[str, str] = field(default_factory=lambda: {"jobs": "1001", "other": "1002"})
    permissions: frozenset[str] = ALL
    foreign: set[str] = field(default_factory=set)
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    objects: str | None = None
    lost: int = 0

    def add(self, name: str, project: str = "jobs", **settings: Any) -> dict[str, Any]:
        """A bucket with Google's defaults but for what is given; its resource, to be changed."""
        body = {"name": name, "location": "US-CENTRAL1", **settings}
        self.buckets[name] = _new(body, self.projects.get(project, "9999"))
        return self.buckets[name]

    def reset(self) -> None:
        """As it was when it started."""
        fresh = GcsJsonApi()
        for name in ("projects", "permissions", "foreign", "buckets", "requests", "lost"):
            setattr(self, name, getattr(fresh, name))


@contextlib.contextmanager
def gcs_json_api(objects: str | None = None) -> Iterator[GcsJsonApi]:
    """Run a stand-in in a thread as long as the context lasts; `objects` is an emulator's URL."""
    api = GcsJsonApi(objects=objects)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gcs-json-api", daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_serve(api), loop).result(20)
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


async def _serve(api: GcsJsonApi) -> web.AppRunner:
    app = web.Application(client_max_size=1 << 30)
    handler = _Handler(api)
    app.cleanup_ctx.append(handler.session)
    bucket = "/storage/v1/b/{bucket}"
    app.router.add_get("/storage/v1/b", handler.list)
    app.router.add_post("/storage/v1/b", handler.create)
    app.router.add_get(bucket, handler.get)
    app.router.add_patch(bucket, handler.patch)
    app.router.add_get(f"{bucket}/iam/testPermissions", handler.test_permissions)
    app.router.add_route("*", "/{rest:.*}", handler.forward)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    api.url = f"http://{host}:{port}"
    return runner


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        self.answer = web.json_response({"error": {"code": status, "message": text}}, status=status)


class _Handler:
    def __init__(self, api: GcsJsonApi) -> None:
        self._api = api
        self._session: aiohttp.ClientSession

    async def session(self, _: web.Application) -> Any:
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            yield

    async def list(self, request: web.Request) -> web.Response:
        self._note(request)
        project = request.query.get("project", "")
        if project not in self._api.projects or not self._may("storage.buckets.list"):
            return _denied("storage.buckets.list")
        number, prefix = self._api.projects[project], request.query.get("prefix", "")
        found = [
            bucket
            for name, bucket in sorted(self._api.buckets.items())
            if bucket["projectNumber"] == number and name.startswith(prefix)
        ]
        return web.json_response({"kind": "storage#buckets", "items": found})

    async def create(self, request: web.Request) -> web.Response:
        self._note(request)
        try:
            body = await request.json()
            name, project = body.get("name", ""), request.query.get("project")
            if project is None:
                raise _Refused(400, "Required parameter: project")
            if not self._may("storage.buckets.create"):
                return self._sent(request, _denied("storage.buckets.create"))
            if project not in self._api.projects:
                raise _Refused(404, f"Unknown project id: {project}")
            if not _NAME.fullmatch(name):
                raise _Refused(400, f"Invalid bucket name: '{name}'")
            if name in self._api.foreign:
                raise _Refused(409, "The requested bucket name is not available.")
            if name in self._api.buckets:
                raise _Refused(409, "Your previous request to create the named bucket succeeded "
                                    "and you already own it.")  # fmt: skip
            self._api.buckets[name] = _new(body, self._api.projects[project])
        except _Refused as refused:
            return self._sent(request, refused.answer)
        return self._sent(request, web.json_response(self._api.buckets[name]))

    async def get(self, request: web.Request) -> web.Response:
        self._note(request)
        try:
            return web.json_response(self._bucket(request, "storage.buckets.get"))
        except _Refused as refused:
            return refused.answer

    async def patch(self, request: web.Request) -> web.Response:
        self._note(request)
        try:
            bucket = self._bucket(request, "storage.buckets.update")
            wanted = request.query.get("ifMetagenerationMatch")
            if wanted not in (None, bucket["metageneration"]):
                raise _Refused(412, "At least one of the pre-conditions you specified did not "
                                    "hold.")  # fmt: skip
            changed = copy.deepcopy(bucket)
            _lay(changed, await request.json())
            changed["metageneration"] = str(int(changed["metageneration"]) + 1)
            self._api.buckets[bucket["name"]] = changed
        except _Refused as refused:
            return self._sent(request, refused.answer)
        return self._sent(request, web.json_response(changed))

    async def test_permissions(self, request: web.Request) -> web.Response:
        self._note(request)
        name, asked = request.match_info["bucket"], request.query.getall("permissions", [])
        unknown = [p for p in asked if not re.fullmatch(r"storage\.(buckets|objects)\.\w+", p)]
        if unknown or not asked:
            return _Refused(400, f"Invalid permissions: {unknown}").answer
        if name not in self._api.buckets and name not in self._api.foreign:
            return _Refused(404, "The specified bucket does not exist.").answer
        has = frozenset() if name in self._api.foreign else self._api.permissions
        granted = [permission for permission in asked if permission in has]
        return web.json_response(
            {"kind": "storage#testIamPermissionsResponse"}
            | ({"permissions": granted} if granted else {})
        )

    async def forward(self, request: web.Request) -> web.Response:
        if self._api.objects is None:
            return _Refused(404, "Not Found").answer
        async with self._session.request(
            request.method,
            URL(self._api.objects + request.raw_path, encoded=True),
            headers={k: v for k, v in request.headers.items() if k.lower() != "host"},
            data=await request.read(),
        ) as answer:
            dropped = {"transfer-encoding", "connection", "content-length"}
            headers = {k: v for k, v in answer.headers.items() if k.lower() not in dropped}
            return web.Response(status=answer.status, headers=headers, body=await answer.read())

    def _note(self, request: web.Request) -> None:
        self._api.requests.append((request.method, request.path.removeprefix("/storage/v1/")))

    def _sent(self, request: web.Request, answer: web.Response) -> web.Response:
        if self._api.lost > 0 and request.transport is not None:
            self._api.lost -= 1
            request.transport.abort()
        return answer

    def _may(self, permission: str) -> bool:
        return permission in self._api.permissions

    def _bucket(self, request: web.Request, permission: str) -> dict[str, Any]:
        name = request.match_info["bucket"]
        if name in self._api.foreign or (name in self._api.buckets and not self._may(permission)):
            raise _Refused(
                403,
                f"job@jobs.iam.gserviceaccount.com does not have {permission} access to the "
                f"Google Cloud Storage bucket. Permission '{permission}' denied on resource (or it "
                "may not exist).",
            )
        if name not in self._api.buckets:
            raise _Refused(404, "The specified bucket does not exist.")
        return self._api.buckets[name]


def _denied(permission: str) -> web.Response:
    return _Refused(403, f"job@jobs.iam.gserviceaccount.com does not have {permission}").answer


def _new(body: dict[str, Any], project_number: str) -> dict[str, Any]:
    settings = dict(body)
    name, location = settings.pop("name"), str(settings.pop("location", "US")).upper()
    if location not in _REGIONS | _TYPES.keys():
        raise _Refused(400, f"The specified location constraint is not valid: {location}")
    bucket: dict[str, Any] = {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "projectNumber": project_number,
        "location": location,
        "locationType": _TYPES.get(location, "region"),
        "storageClass": "STANDARD",
        "metageneration": "1",
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": False},
            "publicAccessPrevention": "inherited",
        },
        "softDeletePolicy": {"retentionDurationSeconds": "604800"},
    }
    _lay(bucket, settings)
    return bucket


def _lay(bucket: dict[str, Any], changes: dict[str, Any]) -> None:
    """Change a resource as PATCH does: what is an object in it is merged, null takes away."""
    for key, value in changes.items():
        if key not in _WRITABLE:
            raise _Refused(400, f"Unknown or immutable field: {key}")
        _check(key, value)
        if value is None:
            bucket.pop(key, None)
        elif isinstance(value, dict) and key != "lifecycle":
            bucket[key] = {**bucket.get(key, {}), **value}
        else:
            bucket[key] = copy.deepcopy(value)


def _check(key: str, value: Any) -> None:
    known = _WRITABLE[key]
    if value is None:
        return
    if known is not None and (not isinstance(value, dict) or value.keys() - known):
        raise _Refused(400, f"Invalid value for {key}: {value}")
    if key == "storageClass" and value not in _CLASSES:
        raise _Refused(400, f"Invalid storage class: {value}")
    if key == "iamConfiguration":
        uniform = value.get("uniformBucketLevelAccess", {"enabled": False})
        prevention = value.get("publicAccessPrevention", "inherited")
        if uniform.keys() != {"enabled"} or prevention not in ("inherited", "enforced"):
            raise _Refused(400, f"Invalid value for {key}: {value}")
    if key == "softDeletePolicy":
        text = value.get("retentionDurationSeconds")
        seconds = int(text) if isinstance(text, str) and text.isdigit() else -1
        if seconds != 0 and not 7 * 86_400 <= seconds <= 90 * 86_400:
            raise _Refused(400, f"The specified soft delete policy is not valid: {text!r}")
    if key == "lifecycle":
        for rule in value.get("rule", []):
            _check_rule(rule)


def _check_rule(rule: dict[str, Any]) -> None:
    action, condition = rule.get("action", {}), rule.get("condition", {})
    fits = all(
        name in _CONDITIONS and type(value) is _CONDITIONS[name]
        for name, value in condition.items()
    )
    if (
        rule.keys() != {"action", "condition"}
        or action.get("type") not in _ACTIONS
        or not condition
        or not fits
        or condition.get("age", 0) < 0
        or len(condition.get("matchesPrefix", [])) > 50
    ):
        raise _Refused(400, f"Invalid lifecycle rule: {rule}")
