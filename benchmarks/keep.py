"""Run benchmarks and keep what they print, with the machine and the versions, in results/NAME.txt.

    python benchmarks/keep.py NAME [NAME ...] [--quick]

With --quick each runs as short as it can, to see that it works, and nothing is kept.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil

from search.machine import cpu_name
from search.run_folder import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("torch", "timm", "ray", "optuna", "numpy", "scikit-learn")


def machine() -> str:
    """What the figures hang on, in two lines."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    return (
        f"{datetime.date.today()}, commit {commit}; {len(os.sched_getaffinity(0))} cores of "
        f"{cpu_name()}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}\n"
        f"Python {platform.python_version()}, {versions}\n"
    )


def run(name: str, quick: bool) -> None:
    """Raises CalledProcessError when the script fails."""
    command = [sys.executable, "-u", str(HERE / f"{name}.py"), *(["--quick"] if quick else [])]
    shown = f"$ python benchmarks/{name}.py\n"
    print(f"\n{shown}", end="", flush=True)
    started, lines = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    took = f"(took {time.monotonic() - started:.0f} s)\n"
    print(took, end="", flush=True)
    if not quick:
        write_text(RESULTS / f"{name}.txt", "".join([machine(), shown, *lines, took]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="short runs, nothing is kept")
    args = parser.parse_args()
    for name in args.names:
        run(name, args.quick)


if __name__ == "__main__":
    main()
