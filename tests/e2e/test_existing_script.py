"""A training script that knows nothing of hotstart runs as `python script.py` would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.launch import Finished, RayNodes, Site, ray_nodes

pytestmark = pytest.mark.e2e

NO_CACHE = "cache: {mode: 'off'}\n"


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(1, cpus=4) as running:
        yield running


@pytest.fixture
def here(nodes: RayNodes) -> Iterator[Site]:
    with nodes.site() as made:
        yield made
        made.assert_clean()


def said(finished: Finished, process_index: int = 0) -> list[str]:
    """The lines that one worker wrote."""
    prefix = f"[{process_index}] "
    lines = finished.stdout.splitlines()
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


SURROUNDED = """
    import json, multiprocessing, os, pickle, signal, sys, threading
    import cache, conf, launcher, launcher.launch

    class Batch:
        def __init__(self, value):
            self.value = value

    def load(batch):
        return Batch(batch.value * 10), __name__, os.getpid()

    def stop(number, frame):
        pass

    if __name__ == "__main__":
        signal.signal(signal.SIGTERM, stop)
        with multiprocessing.get_context("spawn").Pool(2) as loaders:
            results = loaders.map(load, [Batch(1), Batch(2)], chunksize=1)
        again = pickle.loads(pickle.dumps(Batch(3)))
        facts = {
            "modules": [cache.WHO, conf.WHO, launcher.WHO, launcher.launch.WHO],
            "path": sys.path[0],
            "argv": sys.argv,
            "file": __file__,
            "folder": os.getcwd(),
            "main_thread": threading.current_thread() is threading.main_thread(),
            "batches": [batch.value for batch, _, _ in results],
            "loaders_apart": os.getpid() not in [pid for _, _, pid in results],
            "loader_names": sorted({name for _, name, _ in results}),
            "pickled": [again.value, type(again) is Batch],
            "is_main_module": sys.modules["__main__"].Batch is Batch,
            "handler": signal.getsignal(signal.SIGTERM) is stop,
            "spec": __spec__,
            "ray": "ray" in sys.modules,
        }
        print(json.dumps(facts))
"""


def test_script_beside_modules_of_the_same_names_runs_as_main(here: Site) -> None:
    script = here.write("work/train.py", SURROUNDED)
    here.write("work/cache.py", "WHO = 'my cache'\n")
    here.write("work/conf.py", "WHO = 'my conf'\n")
    here.write("work/launcher/__init__.py", "WHO = 'my launcher'\n")
    here.write("work/launcher/launch.py", "WHO = 'my launch'\n")
    here.write("job.yaml", "script: work/train.py\nargs: [--rate, 0.5, a b]\n")
    finished = here.launch()
    assert finished.exit_code == 0, finished.shown
    [line] = said(finished)
    assert json.loads(line) == {
        "modules": ["my cache", "my conf", "my launcher", "my launch"],
        "path": str(script.parent),
        "argv": [str(script), "--rate", "0.5", "a b"],
        "file": str(script),
        "folder": str(here.folder),
        "main_thread": True,
        "batches": [10, 20],
        "loaders_apart": True,
        "loader_names": ["__mp_main__"],
        "pickled": [3, True],
        "is_main_module": True,
        "handler": True,
        "spec": None,
        "ray": False,
    }


def test_script_behind_a_link_finds_the_modules_beside_its_file(here: Site) -> None:
    here.write("code/train.py", "import beside\nprint(beside.WHO)\n")
    here.write("code/beside.py", "WHO = 'found'\n")
    (here.folder / "train.py").symlink_to(here.folder / "code" / "train.py")
    here.write("job.yaml", "script: train.py\n" + NO_CACHE)
    finished = here.launch()
    assert (finished.exit_code, said(finished)) == (0, ["found"]), finished.shown


def test_script_exit_code_without_a_restart_fails_the_job(here: Site) -> None:
    here.write("train.py", "import sys\nprint('leaving')\nsys.exit(7)\n")
    here.write("job.yaml", "script: train.py\nrestarts: {failures: 0}\n" + NO_CACHE)
    finished = here.launch("job.yaml", "--json")
    assert finished.exit_code == 1, finished.shown
    [attempt] = finished.report["attempts"]
    host = attempt["workers"][0]["host"]
    assert attempt["reason"] == f"process 0 on {host} exited with code 7"
    assert (attempt["outcome"], attempt["first_worker"]) == ("failed", 0)
    assert (finished.report["state"], finished.report["exit_code"]) == ("failed", 1)


def test_script_exit_code_with_a_restart_spends_the_budget(here: Site) -> None:
    here.write("train.py", "import sys\nsys.exit(7)\n")
    here.write("job.yaml", "script: train.py\nrestarts: {failures: 1, backoff_s: 0}\n" + NO_CACHE)
    finished = here.launch("job.yaml", "--json")
    assert finished.exit_code == 3, finished.shown
    report = finished.report
    host = report["attempts"][0]["workers"][0]["host"]
    reason = f"process 0 on {host} exited with code 7"
    assert [a["reason"] for a in report["attempts"]] == [reason, reason]
    assert report["reason"] == f"{reason}; restarts.failures=1 is spent"
    assert (report["state"], report["exit_code"]) == ("failed", 3)


BROKEN = {
    "an error": """
        def inner(value):
            return 1 / value

        try:
            inner(0)
        except ZeroDivisionError as error:
            raise RuntimeError("bad batch") from error
    """,
    "a syntax error": """
        x = 1
        if x
            print(x)
    """,
    "a missing module": """
        import no_such_module
    """,
    "a message": """
        import sys
        sys.exit("no data in /data")
    """,
    "an error of an error group": """
        raise ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    """,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_script_that_fails_prints_what_python_prints(here: Site, broken: str) -> None:
    script = here.write("train.py", BROKEN[broken])
    here.write("job.yaml", "script: train.py\nrestarts: {failures: 0}\n" + NO_CACHE)
    plain = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    finished = here.launch()
    assert finished.exit_code == 1, finished.shown
    assert plain.returncode == 1
    assert said(finished) == plain.stderr.splitlines()


def test_entrypoint_is_called_with_args_and_its_number_is_the_exit_code(here: Site) -> None:
    here.write("pack/__init__.py", "")
    here.write(
        "pack/train.py",
        """
        import sys, threading

        class Jobs:
            pass

        def main():
            print(sys.argv[1:], __name__, threading.current_thread().name)
            return 5
        """,
    )
    here.write(
        "job.yaml",
        "entrypoint: pack.train:main\nargs: [a, 2]\nrestarts: {failures: 0}\n" + NO_CACHE,
    )
    finished = here.launch()
    assert finished.exit_code == 1, finished.shown
    assert said(finished) == ["['a', '2'] pack.train MainThread"]
    assert "exited with code 5" in finished.stdout


GANG = """
    import jax
    {before}
    print(jax.process_index(), jax.process_count(), jax.device_count())
"""
TWO = "script: train.py\nworkers: 2\nresources_per_worker: {CPU: 1}\n" + NO_CACHE


@pytest.mark.parametrize(
    ("mode", "before"),
    [
        ("launcher", ""),
        ("launcher", "jax.distributed.initialize()"),
        ("launcher", "jax.distributed.initialize('127.0.0.1:9', 2, 0)"),
        ("script", "jax.distributed.initialize()"),
    ],
)
def test_gang_forms_whoever_initializes(here: Site, mode: str, before: str) -> None:
    here.write("train.py", GANG.format(before=before))
    here.write("job.yaml", f"{TWO}jax_distributed: {mode}\n")
    finished = here.launch()
    assert finished.exit_code == 0, finished.shown
    assert [said(finished, index) for index in (0, 1)] == [["0 2 2"], ["1 2 2"]]


def test_gang_of_script_mode_without_a_call_stays_apart(here: Site) -> None:
    here.write("train.py", GANG.format(before=""))
    here.write("job.yaml", f"{TWO}jax_distributed: script\n")
    finished = here.launch()
    assert finished.exit_code == 0, finished.shown
    assert [said(finished, index) for index in (0, 1)] == [["0 1 1"], ["0 1 1"]]
