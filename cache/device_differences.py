"""How two programs' devices differ, and where a program is placed among them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceChange:
    """One thing that differs; `note` is to be added to the text of what it is and was."""

    subject: str
    before: str | None
    after: str | None
    note: str = ""
    text: str | None = None


def spans_otherwise(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether only how many of the same devices the program spans has changed."""
    spanned = {"count", "kinds", "share", "processes"}
    return before.get("all") == after.get("all") and {*_changed(before, after)} <= spanned


def compare_devices(
    before: Mapping[str, str],
    after: Mapping[str, str],
    outside: tuple[Iterable[str], Iterable[str]] = ((), ()),
) -> list[DeviceChange]:
    """What differs of what is recorded. `outside`: flags before and after that no key holds."""
    changed = _changed(before, after)
    # The kinds' counts, and each process's share, say the same once more.
    if "count" in changed:
        hidden = {"kinds", "share"} if _kinds(before) == _kinds(after) else {"share"}
        changed = [name for name in changed if name not in hidden]
    elif before.get("all") != after.get("all"):
        changed.insert(0, "all")
    found = []
    for name in changed:
        was, now = before.get(name), after.get(name)
        note = _flags_outside(*outside) if name in ("count", "all") else ""
        if name == "count":
            note = _of_all(before, after) + note
        if name == "processor":
            found.append(_processors(was or "", now or ""))
        else:
            found.append(DeviceChange(_NAMES[name], was, now, note))
    return found


def placed_on(assignment: str | None) -> str | None:
    """The device ids in a serialized `DeviceAssignmentProto` in hex; itself where it is none.

    Its fields, of XLA's xla_data.proto: replica_count = 1, computation_count = 2,
    computation_devices = 3 with replica_device_ids = 1.
    """
    if assignment is None:
        return None
    try:
        ids = [
            device
            for field, value in _fields(bytes.fromhex(assignment))
            if field == 3 and isinstance(value, bytes)
            for device in _ids(value)
        ]
    except (ValueError, IndexError):
        return assignment
    return f"[{', '.join(map(str, ids))}]"


_NAMES = {
    "platform": "the devices' platform",
    "count": "the number of devices",
    "kinds": "the kinds of devices",
    "processes": "the number of processes",
    "share": "the devices of each process",
    "processor": "the processor",
    "places": "the devices' places in the topology",
    "all": "the number of all devices, of which the program uses some,",
}


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [n for n in _NAMES if n != "all" and before.get(n) != after.get(n)]


def _kinds(devices: Mapping[str, str]) -> set[str]:
    return {kind.partition(" x ")[2] for kind in devices.get("kinds", "").split(", ")}


def _of_all(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    was, now = before.get("all"), after.get("all")
    return f" (of {now} in all)" if was == now and now != after.get("count") else ""


def _flags_outside(before: Iterable[str], after: Iterable[str]) -> str:
    """Flags are not in the key that show in the devices."""
    was, now = list(before), list(after)
    changes = [*_only(was, now, "no longer "), *_only(now, was, "")]
    return f" ({'; '.join(changes)})" if changes else ""


def _only(flags: list[str], others: list[str], word: str) -> Iterator[str]:
    yield from (f"{word}{flag}" for flag in flags if flag not in others and "device" in flag)


def _processors(was: str, now: str) -> DeviceChange:
    """Model and features are long texts: only what differs."""
    before, after = was.split(), now.split()
    gone = [word for word in before if word not in set(after)]
    new = [word for word in after if word not in set(before)]
    text = "the processor's model or features differ, and executables are native code"
    if gone:
        text += f"; gone: {' '.join(gone[:20])}"
    if new:
        text += f"; new: {' '.join(new[:20])}"
    return DeviceChange(_NAMES["processor"], " ".join(gone), " ".join(new), text=text)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message that has varints and bytes alone; ValueError, IndexError."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2 and at + value <= len(data):
            yield tag >> 3, data[at : at + value]
            at += value
        else:
            raise ValueError("not a message of varints and bytes")


def _ids(message: bytes) -> Iterator[int]:
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):  # packed
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                yield number
        elif field == 1 and isinstance(value, int):
            yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
