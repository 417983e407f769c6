"""A program runs as the interpreter would run it; each in a fresh process, which it takes over."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

# The frames that catch are a worker's, and must not be seen.
RUN = """
import json, sys
from hotstart.launcher import worker
from hotstart.launcher.plan import Program
from hotstart.launcher.program import print_traceback, run_program
facts = json.loads(sys.argv[1])
facts["args"], facts["path"] = tuple(facts["args"]), tuple(facts["path"])
main = '''
try:
    run_program(Program(**facts))
except Exception as error:
    print_traceback(error)
    sys.exit(1)
'''
exec(compile(main, worker.__file__, "exec"))
"""


def run(folder: Path, **facts: object) -> subprocess.CompletedProcess[str]:
    given = {"script": None, "entrypoint": None, "args": [], "path": [], "folder": str(folder)}
    return subprocess.run(
        [sys.executable, "-P", "-c", RUN, json.dumps(given | facts)],
        capture_output=True,
        text=True,
        check=False,
    )


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def test_program_script_is_main_with_its_arguments_and_folder(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import json, os, sys
        main = sys.modules["__main__"]
        print(json.dumps([__name__, main.__file__, sys.argv, sys.path[0], os.getcwd(),
                          __spec__, __loader__.get_filename(), main.__dict__ is globals()]))
        """,
    )
    work = tmp_path / "work"
    work.mkdir()
    ended = run(work, script=str(script), args=["-x", "a b"], path=[str(tmp_path)])
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [
        "__main__",
        str(script),
        [str(script), "-x", "a b"],
        str(tmp_path),
        str(work),
        None,
        str(script),
        True,
    ]


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        ("sys.exit(7)", 7),
        ("sys.exit()", 0),
        ("sys.exit('why')", 1),
        ("os._exit(9)", 9),
        ("raise ValueError", 1),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
def test_program_script_exit_code_is_its_own(tmp_path: Path, leave: str, code: int) -> None:
    script = write(tmp_path / "script.py", f"import os, sys\n{leave}\n")
    assert run(tmp_path, script=str(script)).returncode == code


@pytest.mark.parametrize(
    ("returned", "code"),
    [("None", 0), ("0", 0), ("5", 5), ("True", 0), ("'text'", 0)],
)
def test_program_function_number_is_the_exit_code(tmp_path: Path, returned: str, code: int) -> None:
    write(tmp_path / "mine.py", f"class Jobs:\n    def main():\n        return {returned}\n")
    ended = run(tmp_path, entrypoint="mine:Jobs.main", path=[str(tmp_path)])
    assert (ended.returncode, ended.stderr) == (code, "")


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    return 1 / 0\nf()\n",
        "import no_such_module\n",
        "x = (\n",
        "try:\n    {}['a']\nexcept KeyError as error:\n    raise RuntimeError from error\n",
        "raise SyntaxError('mine')\n",
    ],
)
def test_program_script_traceback_is_the_interpreters(tmp_path: Path, text: str) -> None:
    script = write(tmp_path / "script.py", text)
    plain = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert run(tmp_path, script=str(script)).stderr == plain.stderr != ""


def test_program_missing_function_says_so_with_a_traceback(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", "")
    ended = run(tmp_path, entrypoint="mine:main", path=[str(tmp_path)])
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert ended.stderr.endswith("AttributeError: module 'mine' has no attribute 'main'\n")


def test_program_folder_that_is_not_on_this_host_is_left_out(tmp_path: Path) -> None:
    script = write(tmp_path / "script.py", "print('ran')\n")
    assert run(tmp_path / "none", script=str(script)).stdout == "ran\n"


def test_program_resumes_only_where_its_checkpoint_is(tmp_path: Path) -> None:
    script = write(tmp_path / "script.py", "import sys; print(sys.argv[1:])")
    checkpoint = tmp_path / "last.ckpt"
    facts = {
        "script": str(script),
        "args": ["--steps", "5"],
        "resume_if": str(checkpoint),
        "resume_args": ["--resume-from", str(checkpoint)],
    }
    assert run(tmp_path, **facts).stdout == "['--steps', '5']\n"
    checkpoint.touch()
    assert run(tmp_path, **facts).stdout == f"['--steps', '5', '--resume-from', '{checkpoint}']\n"
