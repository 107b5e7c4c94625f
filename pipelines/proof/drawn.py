"""The arms as training sets: images of each that are drawn to be looked at, the same ones of all."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from manifests.rundir import Run
from pipelines.proof.arms import held_out, prepare_arm
from pipelines.proof.plan import ArmName, Proof, local_root
from pipelines.proof.samples import Rows, all_rows, reference_rows
from pipelines.proof.trainers import resolution_of

#: Images of the original that are drawn at most: above that, numbers hardly matter, and features fit in memory.
MOST: Final = 50_000


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images of several arms, at the size of the first trainer.

    Attributes:
        of: training samples of the original.
        images: those of them that were drawn: all, or ``MOST``.
        keys: arm => the drawn samples that it has, in order.
        sets: arm => their pixels.
        reference: what they are compared with, all of it.
    """

    resolution: int
    of: int
    images: int
    keys: dict[ArmName, list[str]]
    sets: dict[str, Rows]
    reference: Rows

    def described(self, proof: Proof) -> dict[str, Any]:
        """What a file of figures says of its images."""
        told = {"reference": proof.reference, "resolution": self.resolution}
        return told | {"images": self.images, "of": self.of}


def draw(run: Run, proof: Proof, arms: Sequence[ArmName]) -> Drawn:
    """Draw by a hash of the keys, so that every arm is left with those of the same samples.

    Raises:
        ConfigError, RunError, SourceError: an arm or the reference cannot be made.
    """
    side, folder = resolution_of(proof, proof.trainers[0]), local_root(run) / "jobs" / "images"
    every = prepare_arm(run, proof, "original", side).keys
    chosen = set(heapq.nsmallest(MOST, every, key=lambda key: hashlib.sha256(key.encode()).digest()))
    keys: dict[ArmName, list[str]] = {}
    sets: dict[str, Rows] = {}
    for name in arms:
        arm, path = prepare_arm(run, proof, name, side), folder / f"{name}-{side}.npy"
        rows = tuple(row for row, key in enumerate(arm.keys) if key in chosen)
        whole = len(rows) == len(arm.keys)
        keys[name] = [arm.keys[row] for row in rows]
        sets[name] = all_rows(arm, path) if whole else Rows(path, arm.fingerprint, len(rows), rows)
    return Drawn(side, len(every), len(chosen), keys, sets, reference_rows(run, held_out(run, proof), side))
