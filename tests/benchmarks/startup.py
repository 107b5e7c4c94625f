"""CPU time that commands take on a finished run: `python -m tests.benchmarks.startup RUN` (medians of five)."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "status": [sys.executable, "-m", "pipelines", "status"],
    "verify": [sys.executable, "-m", "pipelines", "verify"],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(root: str) -> None:
    figures = {}
    for name, command in COMMANDS.items():
        whole = command if name == "python" else [*command, root]
        figures[name] = round(statistics.median(cpu_seconds(whole) for _ in range(5)), 3)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
