"""The main job in one command: start cold, lose a worker, come back warm, finish.

Launches `bytelm` with an empty cache, kills one of its two workers with -9 on the way, and lets
hotstart restart it. The report at the end shows both attempts. Everything is kept in
`build/demo`, which is emptied first, or in `$HOTSTART_HOME`, which is not.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("HOTSTART_HOME") or ROOT / "build" / "demo")
KILL_AT_STEP = 12


def main() -> int:
    """Run the demo; the job's exit code."""
    if "HOTSTART_HOME" not in os.environ:
        shutil.rmtree(HOME, ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("hotstart")),
        "launch",
        str(ROOT / "examples" / "bytelm" / "job.yaml"),
        "--address=local",
        *sys.argv[1:],
    ]
    print("$", " ".join([f"HOTSTART_HOME={HOME}", "hotstart", *command[1:]]), flush=True)
    environ = os.environ | {"HOTSTART_HOME": str(HOME)}
    launcher = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    killed = False
    for line in launcher.stdout or ():
        print(line, end="", flush=True)
        step = re.search(r"\bstep (\d+) loss", line)
        if not killed and step and int(step.group(1)) >= KILL_AT_STEP:
            killed = True
            pid = worker_pid(launcher.pid, process_index=1)
            print(f"demo: kill -9 {pid} (process 1)", flush=True)
            os.kill(pid, signal.SIGKILL)
    return launcher.wait()


def worker_pid(launcher_pid: int, process_index: int) -> int:
    """The pid of one worker of the run that `launcher_pid` drives, found by its environment."""
    wanted = f"HOTSTART_PROCESS_INDEX={process_index}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        ours = wanted in environ and f"HOTSTART_HOME={HOME}".encode() in environ
        if ours and b"hotstart.launcher.worker" in command:
            return int(folder.name)
    raise SystemExit(f"demo: the launcher {launcher_pid} has no process {process_index}")


if __name__ == "__main__":
    sys.exit(main())
