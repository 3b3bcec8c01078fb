# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks that suit a CPU, one after another: `make bench`."""

import subprocess
import sys

RUNS = (
    ("loader", "--images", "512", "--rounds", "3"),
    ("cached", "--rounds", "1"),
    ("evaluate", "--case", "icfg", "--repeats", "1"),
    ("mining", "--rows", "68000", "--repeats", "3"),
    ("search", "--pictures", "200000"),
    ("serve",),
    ("train_step", "--steps", "1", "--repeats", "1"),
    ("efa", "--repeats", "1"),
    ("vocabulary", "--filled", "10", "--repeats", "1"),
    ("attention",),
    ("scaling", "--steps", "5", "--repeats", "1"),
)


def main() -> int:
    """Run each in its own process, so that none inherits another's memory."""
    failed = []
    for name, *arguments in RUNS:
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        print("$", " ".join(["python", *command[1:]]), flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
