"""A job file and its overrides to one resolved `JobConfig`.

Precedence: preset < YAML < environment (`HOTSTART_JOB__...`) < command line.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from hotstart.cache.store import normalize_location
from hotstart.conf.check import check_bounds, check_values, host_path_problem, resolve_paths
from hotstart.conf.errors import ConfigError, Origin, dotted, nearest, shown
from hotstart.conf.keys import (
    Key,
    Setting,
    command_line_settings,
    environment_settings,
    expected,
    keys_of,
    leaf_keys,
    settings_of,
)
from hotstart.conf.lines import KeyPath, at_line, read_yaml
from hotstart.conf.schema import JobConfig

_PRESETS = {"cpu": "local.yaml", "gpu": "gpu.yaml", "tpu": "tpu.yaml"}
_JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_ANEW = "a restart is of the same run; launch the job anew instead"
FIXED = {
    "name": f"it is in the run's name, and {_ANEW}",
    "run_dir": f"the run is there, and {_ANEW}",
    "platform": f"it has presets of its own, and {_ANEW}",
}
"""What a restart can't change, and why."""
_PATHS = {
    ("script",),
    ("working_dir",),
    ("cache", "location"),
    ("cache", "node_dir"),
    ("cache", "signing_key_file"),
    ("resume", "if_exists"),
}


@dataclass(frozen=True)
class LoadedJob:
    """A resolved job, the absolute path of its file, and where each setting came from.

    `origins` maps dotted keys, one for each item of `env` and `resources_per_worker`, to
    `default`, `preset local.yaml`, `job.yaml:12`, `environment NAME` or `command line`.
    """

    config: JobConfig
    source: Path
    origins: dict[str, str]


def load_job(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> LoadedJob:
    """Read a job file, lay environment and command line over it, resolve and check it.

    `environ` is `os.environ` where not given (`${oc.env:NAME}` always reads the latter).
    Blocks on the local file system only; writes nothing and imports nothing of the user's.
    Raises `ConfigError`.
    """
    environ = os.environ if environ is None else environ
    shown_path = os.fspath(path) or "."
    file = Origin(Path(path).name, shown_path, shown_path)
    text = _read_text(Path(path), file)
    source = Path(path).absolute()
    settings = [
        *_file_settings(text, file),
        *environment_settings(environ),
        *command_line_settings(overrides),
    ]
    # The preset depends on the platform, and adopting JAX's directory on the cache's mode.
    draft = _Layers(file, _defaults(source, file, environ, adopt_jax=False))
    draft.lay(settings)
    platform, mode = draft.choice("platform"), draft.choice("cache", "mode")
    layers = _Layers(file, _defaults(source, file, environ, adopt_jax=mode != "off"))
    layers.lay(_preset_settings(_PRESETS[platform]))
    layers.lay(settings)
    config = layers.job()
    check_values(config, layers.origins)
    config = resolve_paths(config, layers.origins, source.parent)
    labels = {
        dotted(key): origin.label
        for key, origin in layers.origins.items()
        if key and key != ("workers_min",)
    }
    return LoadedJob(config, source, labels)


def job_to_yaml(config: JobConfig) -> str:
    """The job as YAML for a run record; `job_from_yaml` gives an equal job back."""
    return yaml.safe_dump(job_to_tree(config), sort_keys=False, width=1000)


def job_to_tree(config: JobConfig) -> dict[str, Any]:
    """The job as plain values, keys as in a job file."""
    tree = dataclasses.asdict(config)
    least = tree.pop("workers_min")
    if least is not None:
        tree["workers"] = {"min": least, "max": config.workers}
    return tree


def job_from_yaml(text: str, name: str = "job.yaml") -> JobConfig:
    """A job that `job_to_yaml` wrote, as it stands: no layers, no `${...}`, no look at its paths.

    `name` is what errors call the text. Raises `ConfigError`.
    """
    file = Origin(name, name, name)
    layers = _Layers(file)
    layers.lay(_literal(setting) for setting in _file_settings(text, file))
    config = layers.job()
    check_values(config, layers.origins)
    return config


def job_with(text: str, name: str, overrides: Sequence[str]) -> JobConfig:
    """The job of a run record with settings of the command line over it.

    Paths among them are made absolute from the current directory, as far as they are on this
    host; those of the record are not looked at. Raises `ConfigError`, also for keys of `FIXED`.
    """
    file = Origin(name, name, name)
    layers = _Layers(file)
    layers.lay(_literal(setting) for setting in _file_settings(text, file))
    settings = list(command_line_settings(overrides))
    for setting in settings:
        if reason := FIXED.get(dotted(setting.path)):
            raise setting.origin.error(reason, key=dotted(setting.path))
    layers.lay(_at_home(setting) for setting in settings)
    config = layers.job()
    check_values(config, layers.origins)
    return config


def _at_home(setting: Setting) -> Setting:
    """The setting, its path absolute where it is one."""
    value, path = setting.value, setting.path
    if path == ("cache", "location") and not (isinstance(value, str) and value.strip()):
        raise setting.origin.error("give a directory or gs://bucket/prefix", key=dotted(path))
    if path not in _PATHS or not isinstance(value, str):
        return setting
    if problem := host_path_problem(path, value):
        raise setting.origin.error(problem, key=dotted(path))
    try:
        local = "://" not in value and "${" not in value
        value = str((Path.cwd() / Path(value).expanduser()).absolute()) if local else value
        if path == ("cache", "location") and "${" not in value:
            value = normalize_location(value)
    except (ValueError, OSError, RuntimeError) as error:
        raise setting.origin.error(str(error), key=dotted(path)) from error
    return dataclasses.replace(setting, value=value)


class _Layers:
    """Settings laid one over the other in an OmegaConf structured config."""

    def __init__(self, file: Origin, computed: Iterable[Setting] = ()) -> None:
        self.origins: dict[KeyPath, Origin] = {key.path: _default(file) for key in leaf_keys()}
        self.origins[()] = file
        self._config: DictConfig = OmegaConf.structured(JobConfig)
        _unfreeze(self._config)
        self._computed: dict[KeyPath, Setting] = {}
        for setting in computed:
            self._computed[setting.path] = setting
            self._set(setting)

    def lay(self, settings: Iterable[Setting]) -> None:
        """Put settings over what is there; a null brings a computed default back."""
        for setting in settings:
            if setting.value is None:
                setting = self._computed.get(setting.path, setting)
            self._set(setting)

    def _set(self, setting: Setting) -> None:
        key, section = setting.key, self._section(setting.key)
        try:
            if setting.item is None:
                section[key.path[-1]] = setting.value
            else:
                section[key.path[-1]][setting.item] = setting.value
        except Exception as error:  # what a grammar may raise is OmegaConf's affair
            raise _unresolved(key, setting.path, setting.value, setting.origin, error) from error
        if setting.item is not None:
            self.origins.pop(key.path, None)
        self.origins[setting.path] = setting.origin

    def _section(self, key: Key) -> Any:
        section: Any = self._config
        for name in key.path[:-1]:
            section = section[name]
        return section

    def choice(self, *path: str) -> Any:
        """The value of one key with choices, resolved and checked."""
        key = next(key for key in leaf_keys() if key.path == path)
        value = self._read(key, self._section(key), path[-1], path)
        check_bounds(key, value, self.origins)
        return value

    def job(self) -> JobConfig:
        """All settings, resolved; raises `ConfigError` for the first that cannot be."""
        for key in leaf_keys():
            value = self._read(key, self._section(key), key.path[-1], key.path)
            if key.kind == "mapping":
                for item in list(value):
                    self._read(key, value, item, (*key.path, item))
            elif key.kind == "list":
                for index in range(len(value)):
                    self._read(key, value, index, key.path)
        job = OmegaConf.to_object(self._config)
        if not isinstance(job, JobConfig):
            raise TypeError(f"expected a JobConfig, got {type(job).__name__}")
        return job

    def _read(self, key: Key, container: Any, name: Any, path: KeyPath) -> Any:
        try:
            return container[name]
        except Exception as error:  # resolvers are anybody's code
            raw = OmegaConf.to_container(container, resolve=False)
            text = raw[name]  # type: ignore[index]
            raise _unresolved(key, path, text, self.origins[path], error) from error


def _default(file: Origin) -> Origin:
    return Origin("default", file.where, file.file)


def _unfreeze(config: DictConfig) -> None:
    OmegaConf.set_readonly(config, False)
    for key in keys_of(JobConfig).values():
        if key.kind == "section":
            OmegaConf.set_readonly(config[key.path[0]], False)


def _unresolved(
    key: Key, path: KeyPath, value: object, origin: Origin, error: Exception
) -> ConfigError:
    if isinstance(error, ValidationError):
        text = f"expected {expected(key)}, and {shown(value)} does not give that"
        return origin.error(text, key=dotted(path))
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    cause = cause.partition("raised while resolving interpolation: ")[2] or cause
    cause = cause[1:-1] if cause[:1] == cause[-1:] == '"' else cause
    text = f"cannot resolve {shown(value)}: {cause}; write \\${{...}} for the text itself"
    return origin.error(text, key=dotted(path))


def _read_text(path: Path, file: Origin) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise file.error(f"no such file{_similar_file(path)}") from error
    except IsADirectoryError as error:
        raise file.error("is a directory; give the job's YAML file") from error
    except UnicodeDecodeError as error:
        raise file.error("not UTF-8 text; give the job's YAML file") from error
    except OSError as error:
        raise file.error(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise file.error("not a usable path") from error


def _similar_file(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    near = nearest(path.name, names)
    return f"; did you mean {path.parent / near}?" if near else ""


def _file_settings(text: str, file: Origin) -> list[Setting]:
    document = read_yaml(text, file)
    if document.value is None:
        raise file.error("the file is empty; give script (a path) or entrypoint (module:function)")
    if not isinstance(document.value, dict):
        text = f"expected key: value lines at the top, got {shown(document.value)}"
        raise file.error(text)

    def origin_of(path: KeyPath) -> Origin:
        # Keys that came in by << have no line of their own here.
        line = document.lines.get(path)
        return file if line is None else at_line(file, line)

    return list(settings_of(document.value, origin_of))


def _preset_settings(name: str) -> list[Setting]:
    label = f"preset {name}"
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    origin = Origin(label, label)
    tree = read_yaml(text, origin).value
    if not isinstance(tree, dict):
        raise origin.error("not a mapping; install hotstart again")
    return list(settings_of(tree, lambda _: origin))


def _defaults(
    source: Path, file: Origin, environ: Mapping[str, str], *, adopt_jax: bool
) -> Iterator[Setting]:
    """Defaults that the schema cannot hold: they depend on the file and the environment."""
    default = _default(file)
    keys = {key.path: key for key in leaf_keys()}
    home, home_origin = environ.get("HOTSTART_HOME"), default
    if home:
        home_origin = Origin("environment HOTSTART_HOME", "environment HOTSTART_HOME")
    home = home or "~/.hotstart"
    yield _literal(Setting(keys[("name",)], source.stem, default))
    yield _literal(Setting(keys[("run_dir",)], f"{home}/runs", home_origin))
    location, origin = f"{home}/cache", home_origin
    adopted = environ.get(_JAX_VARIABLE)
    if adopted and adopt_jax:
        location = adopted
        origin = Origin(f"environment {_JAX_VARIABLE}", f"environment {_JAX_VARIABLE}")
    yield _literal(Setting(keys[("cache", "location")], location, origin))


def _literal(setting: Setting) -> Setting:
    """The setting with its text kept from interpolation."""
    value = setting.value
    if isinstance(value, str):
        value = _escaped(value)
    elif isinstance(value, list):
        value = [_escaped(item) if isinstance(item, str) else item for item in value]
    return dataclasses.replace(setting, value=value)


def _escaped(text: str) -> str:
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
