"""The command line with generators of seconds, for proofs that tests can wait for.

``python -m tests.tiny_proof ARGUMENTS ...`` is ``idm-curate`` with them, in a process that can be killed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS
from pipelines.cli import main
from pipelines.proof import training
from tests.tiny_generators import DDM, GAN


def know_tiny_presets(patch: pytest.MonkeyPatch) -> None:
    """In this process, which saves at every step, until the patch is undone; a cluster's workers are told all of it."""
    patch.setitem(DDM_PRESETS, DDM.name, DDM)
    patch.setitem(GAN_PRESETS, GAN.name, GAN)
    patch.setattr(training, "LEAST_SAVED_NIMG", 1)


def results(run: Path) -> dict[str, str]:
    """All that trainings left for later, by file: hashes of snapshots, loss curves without their times."""
    found = {}
    for path in sorted((run / "jobs").rglob("*")):
        name = str(path.relative_to(run / "jobs"))
        if path.match("snapshot-*.safetensors"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "stats.jsonl":
            found[name] = str([{**line, "seconds": None} for line in stats(path.parent)])
    return found


def stats(folder: Path) -> list[dict[str, float]]:
    """The whole lines of a job's statistics; none where there are none yet."""
    path = folder / "stats.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def holder(folder: Path) -> int | None:
    """Process that trains a job, if one has said so and is there."""
    path = folder / "lock"
    words = path.read_text().split() if path.exists() else []
    return int(words[1]) if len(words) == 4 and Path(f"/proc/{words[1]}").exists() else None


if __name__ == "__main__":
    know_tiny_presets(pytest.MonkeyPatch())  # nobody undoes it
    main()
