"""A trainer of nothing, for what goes wrong and who is told: ``python stub_trainer.py WHAT ARGUMENTS ...``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path


def train(data: str, out: str, *rest: str) -> None:
    """Counts the images and leaves what it was told."""
    with zipfile.ZipFile(data) as archive:
        count = sum(name.endswith(".png") for name in archive.namelist())
    (Path(out) / "snapshot-1.pkl").write_text("\n".join([str(count), *rest]))
    print(f"trained on {count} images")


def sample(snapshot: str, folder: str, count: str) -> None:
    """So many images, in folders."""
    from PIL import Image

    assert Path(snapshot).is_file()
    for i in range(int(count)):
        path = Path(folder) / f"{i // 2:03d}" / f"{i:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(path)


def fail(*_: str) -> None:
    """As trainers do: much is said, the reason last."""
    print("\n".join(f"line {i}" for i in range(50)))
    sys.exit("out of memory, or so")


def meet(place: str, out: str, seed: str, others: str) -> None:
    """Waits until so many of its kind are there at the same time; the one with an odd seed fails then."""
    mine = Path(place) / f"{seed}-{os.getpid()}"
    mine.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    (Path(out) / "gpu").write_text(mine.read_text())
    deadline = time.monotonic() + 120
    while len(there := list(Path(place).iterdir())) < int(others):
        assert time.monotonic() < deadline, "nobody else came"
        time.sleep(0.05)
    time.sleep(1.0)  # whoever is too many would be here by now
    (Path(out) / "together").write_text(str(len(there)))
    if int(seed) % 2:
        sys.exit("an odd seed")


def linger(out: str) -> None:
    """Starts a process in a session of its own, as torchrun does, and waits with it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (Path(out) / "pids").write_text(f"{os.getpid()} {child.pid}")
    child.wait()


def stubborn(out: str) -> None:
    """Is deaf to being ended; a second one says whether the first one is still there."""
    pid = Path(out) / "pid"
    if pid.exists():
        sys.exit("two of us" if Path(f"/proc/{pid.read_text()}").exists() else 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pid.write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    {f.__name__: f for f in (train, sample, fail, meet, linger, stubborn)}[sys.argv[1]](*sys.argv[2:])
