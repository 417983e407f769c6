"""`hotstart cache import`: entries of a bundle, or of stock JAX's cache, into a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from hotstart.launcher.cache_location import open_location, open_seal, signing_key_file
from hotstart.launcher.foreground import json_option

if TYPE_CHECKING:
    from hotstart.cache.bundle import BundleReader
    from hotstart.cache.signing import Seal
    from hotstart.cache.stock import NotStock, StockEntry
    from hotstart.cache.store import Store
    from hotstart.cache.transfer import Brought
    from hotstart.launcher.bundle_manifests import BroughtManifest

_PROBLEMS = 1


@click.command("import", epilog="\b\nExamples:\n"
               "  hotstart cache import bundle.tar gs://bucket/cache\n"
               "  ssh build cat bundle.tar | hotstart cache import - /var/cache/hotstart\n"
               "  hotstart cache import --stock ~/jax-cache gs://bucket/cache\n\n"
               "\b\nExit codes:\n  0  all entries are in LOCATION now\n"
               "  1  some were bad or refused, or the bundle is not whole\n"
               "  2  usage, or a place can't be read or written\n")  # fmt: skip
@click.argument("source", metavar="BUNDLE.tar|DIR")
@click.argument("location", metavar="[LOCATION]", required=False)
@click.option("--stock", is_flag=True, help="SOURCE is a cache of stock JAX: a directory or gs://.")
@click.option(
    "--sign",
    is_flag=True,
    help="Sign what this host's key has not signed for LOCATION: you vouch for where it is from.",
)
@click.option(
    "--job",
    metavar="JOB.yaml",
    help="File what a job asks for at its start as this job's, which has other paths here.",
)
@signing_key_file
@json_option
def import_(
    source: str,
    location: str | None,
    stock: bool,
    sign: bool,
    job: str | None,
    signing_key_file: str | None,
    as_json: bool,
) -> None:
    """Verify the entries of a bundle and store them in LOCATION; none is overwritten.

    `-` as BUNDLE.tar is standard input. Where this host has a signing key, what it has not signed
    for LOCATION is refused without --sign: an entry is native code, and a bundle may be of
    anybody's making. Entries of stock JAX have no digest: take over only what you trust.
    What a job asks for at its start comes too, so that its first start here reads ahead.
    """
    from hotstart.cache.errors import BundleError
    from hotstart.cache.transfer import bring
    from hotstart.launcher.errors import UsageError
    from hotstart.launcher.progress_bar import counted

    store = open_location(location, may_be_new=True)
    seal = open_seal(store, signing_key_file)
    if sign and not seal.keyring:
        raise UsageError("--sign: this host has no signing key; see `hotstart key new`")
    if job is not None and stock:
        raise UsageError("--job: stock JAX's caches don't say what a job asks for")
    problem: str | None = None
    brought: list[Brought] = []
    looked = _Looked()
    manifests = _Manifests(store, seal, sign, job)
    with contextlib.ExitStack() as stack:
        pairs = looked.over(_read_stock(source)) if stock else _members(stack, source, manifests)
        try:
            for one in counted(bring(store, seal, pairs, sign=sign), "import"):
                brought.append(one)
        except BundleError as error:
            problem = f"{source}: {error}"
        except OSError as error:  # the source's: a store's trouble is a StoreError
            problem = f"{source} can't be read: {error.strerror or error}"
    told = looked if stock else manifests
    _tell(store.url, source, brought, told, problem, as_json=as_json)
    fates = Counter(one.fate for one in brought) + Counter(one.fate for one in manifests.brought)
    sys.exit(_PROBLEMS if problem or looked.bad or fates["bad"] or fates["refused"] else 0)


class _Manifests:
    """A bundle's manifests, each stored as it comes, which is behind its entries."""

    def __init__(self, store: Store, seal: Seal, sign: bool, job: str | None) -> None:
        """`job` is the file of the job that they are for here; raises `ConfigError`."""
        self._store, self._seal, self._sign = store, seal, sign
        self._here: dict[int, str] | None = None
        self.brought: list[BroughtManifest] = []
        if job is not None:
            from hotstart.conf.load import load_job
            from hotstart.launcher.bundle_manifests import fingerprints_here

            self._here = fingerprints_here(load_job(job).config)

    def bring(self, fingerprint: str, data: bytes) -> None:
        from hotstart.launcher.bundle_manifests import bring_manifest

        self.brought.append(
            bring_manifest(
                self._store, self._seal, fingerprint, data, sign=self._sign, here=self._here
            )
        )

    def counts(self) -> dict[str, int]:
        fates = Counter(one.fate for one in self.brought)
        return {fate: fates[fate] for fate in ("new", "there", "bad", "refused")}


class _Looked:
    """Entries of stock on their way, and what they say of their keys."""

    def __init__(self) -> None:
        self.bad: dict[str, str] = {}
        self.platforms: Counter[str] = Counter()
        self.folders: Counter[str] = Counter()

    def over(self, entries: Iterable[StockEntry | NotStock]) -> Iterator[tuple[str, bytes]]:
        from hotstart.cache.entry import encode
        from hotstart.cache.stock import NotStock

        for one in entries:
            if isinstance(one, NotStock):
                self.bad[one.file] = one.why
                continue
            self.platforms[one.meta.platform or "unknown"] += 1
            if one.autotune_folder:
                self.folders[one.autotune_folder] += 1
            yield f"{one.key}-cache", encode(one.key, one.payload, one.meta)


def _read_stock(source: str) -> Iterator[StockEntry | NotStock]:
    from hotstart.cache.stock import read_stock

    open_location(source)  # says so where there is none
    return read_stock(source)


def _members(
    stack: contextlib.ExitStack, source: str, manifests: _Manifests
) -> Iterator[tuple[str, bytes]]:
    from hotstart.cache.bundle import BundleReader
    from hotstart.cache.errors import BundleError
    from hotstart.launcher.errors import UsageError

    try:
        stream: BinaryIO = (
            sys.stdin.buffer if source == "-" else stack.enter_context(Path(source).open("rb"))  # noqa: SIM115
        )
        reader: BundleReader = BundleReader(stream)
    except OSError as error:
        raise UsageError(f"{source} can't be read: {error.strerror}") from error
    except BundleError as error:
        raise UsageError(f"{source}: {error}") from error
    return _entries(reader, manifests)


def _entries(reader: BundleReader, manifests: _Manifests) -> Iterator[tuple[str, bytes]]:
    for member in reader.members():
        if member.fingerprint is None:
            yield member.file, member.data
        else:
            manifests.bring(member.fingerprint, member.data)


def _tell(
    url: str,
    source: str,
    brought: list[Brought],
    also: _Looked | _Manifests,
    problem: str | None,
    *,
    as_json: bool,
) -> None:
    looked = also if isinstance(also, _Looked) else None
    manifests = also if isinstance(also, _Manifests) else None
    fates = Counter(one.fate for one in brought)
    counts = {fate: fates[fate] for fate in ("new", "there", "bad", "refused")}
    counts["bad"] += len(looked.bad) if looked else 0
    wrong = [one for one in brought if one.fate in ("bad", "refused")]
    if as_json:
        facts: dict[str, Any] = {"location": url, "source": source, **counts, "problem": problem}
        facts["not_stored"] = [dataclasses.asdict(one) for one in wrong]
        if manifests is not None:
            facts["manifests"] = manifests.counts()
        if looked is not None:
            facts["not_stock"] = looked.bad
            facts["platforms"] = dict(looked.platforms)
            facts["autotune_folders"] = dict(looked.folders)
        click.echo(json.dumps(facts, indent=2))
        return
    shown = ", ".join(f"{number} {fate}" for fate, number in counts.items())
    click.echo(f"{url}: {sum(counts.values())} entries of {source}: {shown}")
    for one in wrong:
        click.echo(f"  {one.fate}: {one.source}: {one.detail}")
    if manifests is not None and manifests.brought:
        _tell_manifests(manifests)
    if counts["refused"] or (manifests is not None and manifests.counts()["refused"]):
        click.echo("--sign takes and signs what is refused, if you trust where it is from")
    if looked is not None:
        for line in _about_keys(looked):
            click.echo(line)
    if problem:
        click.echo(f"{problem}; what came before is stored, and importing again is safe")


def _tell_manifests(manifests: _Manifests) -> None:
    counts = manifests.counts()
    shown = ", ".join(f"{number} {fate}" for fate, number in counts.items() if number)
    click.echo(f"{len(manifests.brought)} manifests, by which first starts read ahead: {shown}")
    for one in manifests.brought:
        if one.fate in ("bad", "refused"):
            click.echo(f"  {one.fate}: the manifest of job {one.fingerprint[:12]}: {one.detail}")


def _about_keys(looked: _Looked) -> Iterator[str]:
    for file, why in looked.bad.items():
        yield f"  bad: {file}: {why}"
    for folder, number in looked.folders.items():
        yield (
            f"{number} were compiled with XLA's autotune folder {folder}: JAX 0.10 has it in their "
            "keys, so no program here asks for them; JAX 0.12 has not. Fill the cache anew with "
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=none to take it over with JAX 0.10"
        )
    if looked.platforms["cpu"]:
        yield (
            f"{looked.platforms['cpu']} are for CPU: programs of a process alone find them; those "
            "of several processes have other keys in hotstart"
        )
    if looked.platforms["gpu"]:
        yield (
            f"{looked.platforms['gpu']} are for GPU: found where XLA_FLAGS are the same; "
            "`cache.compile: once` adds --xla_gpu_shard_autotuning=false"
        )
