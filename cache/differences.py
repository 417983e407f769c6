"""How two keys differ: which components, and what in them.

Pure. A cause is named only where its component's own digest differs, and it is what differs in
that component, read off; no cause is inferred from another. What differs only as a consequence of
a cause (more devices make more partitions) is not a cause, but is kept beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hotstart.cache.description import COMPONENTS, Description
from hotstart.cache.device_differences import compare_devices, placed_on, spans_otherwise
from hotstart.cache.program_differences import compare_programs
from hotstart.cache.setting_effects import INERT, entering

Kind = Literal[
    "flag",
    "version",
    "devices",
    "compile_option",
    "compression",
    "hook",
    "jax_config",
    "dtype",
    "shape",
    "arguments",
    "donation",
    "sharding",
    "committed",
    "layout",
    "code",
    "unknown",
]


@dataclass(frozen=True)
class Cause:
    """One thing that differs.

    component: of the key, as in `description.COMPONENTS`.
    subject: what has changed: a flag, an option, an argument.
    before, after: its values, None where it was not there.
    text: all of that in one line.
    """

    kind: Kind
    component: str
    subject: str
    before: str | None
    after: str | None
    text: str


@dataclass(frozen=True)
class Comparison:
    """All that differs: the components, the causes, and what follows from those."""

    components: tuple[str, ...]
    causes: tuple[Cause, ...]
    follows: tuple[Cause, ...] = ()

    @property
    def distance(self) -> tuple[int, int]:
        """How much differs: components first, then what in them."""
        return len(self.components), len(self.causes) + len(self.follows)


def compare(before: Description, after: Description) -> Comparison:
    """What differs in `after` against `before`."""
    components = tuple(
        name for name in COMPONENTS if before.digests.get(name, "") != after.digests.get(name, "")
    )
    found = _Found(before, after, components)
    return Comparison(components, tuple(found.causes), tuple(found.follows))


class _Found:
    """Gathers causes; the order of the steps matters, for later ones know the earlier."""

    def __init__(self, before: Description, after: Description, components: Iterable[str]) -> None:
        self.causes: list[Cause] = []
        self.follows: list[Cause] = []
        self._before, self._after = before, after
        self._fewer_devices = before.devices.get("count") != after.devices.get("count")
        # Else the program itself takes more of the same devices, or fewer.
        in_all = before.devices.get("all"), after.devices.get("all")
        self._other_machines = self._fewer_devices and (None in in_all or in_all[0] != in_all[1])
        components = set(components)
        steps = {
            "XLA flags": self._flags,
            "jaxlib version": lambda: self._versions("jaxlib version", "jaxlib"),
            "backend version": lambda: self._versions(
                "backend version", "backend", "backend version"
            ),
            "compression": lambda: self._text(
                "compression", "compression", "compression", before.compression, after.compression
            ),
            "custom hook": lambda: self._text(
                "hook", "custom hook", "JAX's custom_hook", before.hook, after.hook
            ),
            "computation": self._computation,
            "devices": self._devices,
            "compile options": self._options,
        }
        for component, step in steps.items():
            if component in components:
                count = len(self.causes) + len(self.follows)
                step()
                if count == len(self.causes) + len(self.follows):
                    self._unread(component)
        if not (before.complete and after.complete) and not components:
            self._unknown("something that hotstart does not know of")
        if components and not self.causes:
            self._promote()

    def _promote(self) -> None:
        """Something differs, so something is a cause: what others follow from, if only maybe."""
        kinds = {cause.kind for cause in self.follows}
        first = next(kind for kind in _BY_WEIGHT if kind in kinds)
        self.causes = [cause for cause in self.follows if cause.kind == first]
        self.follows = [cause for cause in self.follows if cause.kind != first]

    def _flags(self) -> None:
        before, after = _by_name(self._before.flags), _by_name(self._after.flags)
        for name in sorted({*before, *after}):
            if before.get(name, ("", ""))[1] == after.get(name, ("", ""))[1]:
                continue
            source = after.get(name, before.get(name, ("", "")))[0]
            was, now = (values.get(name, (None, None))[1] for values in (before, after))
            text = f"{source}: {changed(name, was, now)}"
            self.causes.append(Cause("flag", "XLA flags", name, was, now, text))

    def _versions(self, component: str, *names: str) -> None:
        for name in names:
            was, now = self._before.versions.get(name), self._after.versions.get(name)
            if was != now:
                self._add("version", component, name, was, now)

    def _computation(self) -> None:
        before, after = self._before, self._after
        was, now = before.versions.get("jax"), after.versions.get("jax")
        if was != now:
            self._add("version", "computation", "jax", was, now)
        settings = sorted(self._other_settings - INERT)
        if before.program is not None and after.program is not None:
            settings = entering(settings, before.program, after.program)
        for name in settings:
            self._add(
                "jax_config", "computation", name, before.settings[name], after.settings[name]
            )
        if before.program is None or after.program is None:
            self._unknown("computation")
            return
        for change in compare_programs(
            before.program,
            after.program,
            other_devices=self._other_machines,
            other_jax=was != now,
            settings=settings,
        ):
            cause = Cause(
                change.kind, "computation", change.subject, change.before, change.after, change.text
            )
            (self.follows if change.follows else self.causes).append(cause)

    def _devices(self) -> None:
        before, after = self._before.devices, self._after.devices
        if self._is_placed(of_causes=True) and spans_otherwise(before, after):
            text = (
                f"the program spans {after.get('count')} devices, not {before.get('count')}, as "
                "its shardings say"
            )
            self.follows.append(
                Cause("devices", "devices", "count", before.get("count"), after.get("count"), text)
            )
            return
        for change in compare_devices(before, after, (self._before.outside, self._after.outside)):
            was, now = change.before, change.after
            text = change.text or changed(change.subject, was, now) + change.note
            self.causes.append(Cause("devices", "devices", change.subject, was, now, text))

    def _options(self) -> None:
        before, after = self._before.options, self._after.options
        names = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
        if not (self._before.session and self._after.session):  # one lacks those of no value
            names = [n for n in names if not (n.startswith("override.") and self._is_no_value(n))]
        flags = {c.subject.lstrip("-") for c in self.causes if c.kind == "flag"}
        flags |= {n.removeprefix("override.") for n in names if n.startswith("override.")}
        # Some flags set an option of another name.
        renamed = any(f"debug.{flag}" not in {*before, *after} for flag in flags)
        settings = {c.subject.removeprefix("jax_") for c in self.causes if c.kind == "jax_config"}
        shaped = any(cause.component == "computation" for cause in (*self.causes, *self.follows))
        for name in names:
            was, now = before.get(name), after.get(name)
            leaf = name.rpartition(".")[2] if not name.endswith("...") else name
            follows = (
                (name.startswith("debug.") and leaf in flags)
                or (name.startswith("debug.") and renamed and leaf not in _BY_JAX)
                or leaf in settings
                or (name == _OTHER_PLATFORM and any("gpu" in flag for flag in flags))
                or (name.startswith("debug.") and self._other_defaults)
                or (leaf in _BY_DEVICES and (self._fewer_devices or self._is_placed()))
                or (leaf == _PLACE and self._fewer_devices)
                or (leaf in _BY_PROGRAM and shaped)
            )
            if leaf == _PLACE:
                if name != leaf and before.get(leaf) != after.get(leaf):
                    continue  # the same once more
                was, now = placed_on(was), placed_on(now)
                text = f"the program runs on devices {now} and ran on {was}"
                cause = Cause("devices", "compile options", leaf, was, now, text)
            elif (setting := f"jax_{leaf}") in self._other_settings and leaf not in settings:
                was, now = (of.settings[setting] for of in (self._before, self._after))
                text = changed(setting, was, now)
                cause = Cause("jax_config", "compile options", setting, was, now, text)
            else:
                text = f"compile option {changed(name.removeprefix('override.'), was, now)}"
                text += " in `jit(compiler_options=...)`" if name.startswith("override.") else ""
                cause = Cause("compile_option", "compile options", name, was, now, text)
            (self.follows if follows else self.causes).append(cause)

    def _is_no_value(self, name: str) -> bool:
        values = self._before.options.get(name), self._after.options.get(name)
        return None in values and bool({*values} & {"False", "false", "0", "0.0", ""})

    @property
    def _other_defaults(self) -> bool:
        """XLA's defaults come with jaxlib, some of JAX's with jax."""
        before, after = self._before.versions, self._after.versions
        return any(before.get(name) != after.get(name) for name in ("jax", "jaxlib"))

    @property
    def _other_settings(self) -> set[str]:
        before, after = self._before.settings, self._after.settings
        return {name for name in {*before} & {*after} if before[name] != after[name]}

    def _is_placed(self, *, of_causes: bool = False) -> bool:
        found = self.causes if of_causes else (*self.causes, *self.follows)
        return any(cause.kind in ("sharding", "committed") for cause in found)

    def _text(self, kind: Kind, component: str, subject: str, was: str, now: str) -> None:
        self._add(kind, component, subject, was, now)

    def _add(
        self, kind: Kind, component: str, subject: str, was: str | None, now: str | None
    ) -> None:
        self.causes.append(Cause(kind, component, subject, was, now, changed(subject, was, now)))

    def _unread(self, component: str) -> None:
        """A component differs, and what was recorded of it reads the same."""
        flags = [c.subject for c in self.causes if c.kind == "flag" and c.subject in _FOR_PROCESSOR]
        if component == "devices" and flags:
            text = f"what an executable may use of the processor differs, as {flags[0]} says"
            self.follows.append(Cause("devices", component, "the processor", None, None, text))
        else:
            self._unknown(component)

    def _unknown(self, component: str) -> None:
        text = f"{component} differs, in what can't be read from what was recorded"
        self.causes.append(Cause("unknown", component, component, None, None, text))


_BY_WEIGHT: tuple[Kind, ...] = (
    "dtype",
    "arguments",
    "sharding",
    "committed",
    "devices",
    "donation",
    "layout",
    "shape",
    "code",
    "compile_option",
)
_BY_DEVICES = ("num_partitions", "num_replicas")
_PLACE = "device_assignment"
# Flags that decide what XLA takes for the processor's features, which are in the topology's digest.
_FOR_PROCESSOR = ("--xla_cpu_max_isa", "--xla_cpu_prefer_vector_width")
# JAX sets these by its own settings (`compiler.get_compile_options`).
_BY_JAX = (
    "xla_backend_optimization_level",
    "xla_disable_hlo_passes",
    "xla_llvm_disable_expensive_passes",
    "xla_test_all_input_layouts",
)
_BY_PROGRAM = (
    "allow_spmd_sharding_propagation_to_output",
    "allow_spmd_sharding_propagation_to_parameters",
    "argument_layouts",
    "result_layout",
    "xla_detailed_logging",  # for programs of some size
)
_OTHER_PLATFORM = "debug.xla_gpu_..."


def _by_name(flags: Mapping[str, list[str]]) -> dict[str, tuple[str, str]]:
    """By a flag's name: where it comes from, and its values in order."""
    found: dict[str, tuple[str, str]] = {}
    for source, given in flags.items():
        for flag in given:
            name, equals, value = flag.partition("=")
            value = value if equals else "on"
            before = found.get(name)
            found[name] = (source, f"{before[1]}, {value}" if before else value)
    return found


def changed(subject: str, was: str | None, now: str | None) -> str:
    """`x is 1 and was 2`."""
    if was is None:
        return f"{subject} is {quoted(now)} and was not set"
    if now is None:
        return f"{subject} is not set and was {quoted(was)}"
    return f"{subject} is {quoted(now)} and was {quoted(was)}"


def quoted(value: str | None) -> str:
    return '""' if value == "" else str(value)
