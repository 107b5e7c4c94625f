"""Time and peak memory of any command of the project, process by process.

    python -m tests.benchmarks.footprint run --dataset folder --source PATH --run DIR

Prints one JSON object: seconds, exit status, and for each kind of process the largest resident set that any one of
them reached (the kernel's own high-water mark, VmHWM, in bytes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def high_water_marks(session: int) -> dict[str, int]:
    """Peak resident bytes by process name, over the processes that live in a session now."""
    peaks: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) != session:
                continue
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
            command = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except (ProcessLookupError, FileNotFoundError):
            continue  # it ended while we looked
        if "VmHWM" in status:
            name = Path(command.split(" ")[0]).name or status["Name"].strip()
            peaks[name] = max(peaks.get(name, 0), int(status["VmHWM"].split()[0]) * 1024)
    return peaks


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pipelines", *arguments], start_new_session=True)
    peaks: dict[str, int] = {}
    while process.poll() is None:
        for name, nbytes in high_water_marks(process.pid).items():
            peaks[name] = max(peaks.get(name, 0), nbytes)
        time.sleep(0.5)
    figures = {
        "command": arguments,
        "exit": process.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "peak_bytes": dict(sorted(peaks.items(), key=lambda item: -item[1])),
    }
    print(json.dumps(figures, indent=2))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
