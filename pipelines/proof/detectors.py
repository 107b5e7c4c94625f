"""Which detectors a proof is measured by, and what is said of it before anything is trained."""

from __future__ import annotations

import logging
from functools import partial

from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines import weights
from pipelines.detectors import EfficientNetLite0, OpenDetector, open_detector, resolve_detector
from pipelines.proof.plan import Proof, is_declared, read

log = logging.getLogger("idm_curate")


def with_detectors(run: Run, proof: Proof) -> Proof:
    """The declaration with its detectors by name: a file that comes later makes no other headline.

    Raises:
        ConfigError: Inception's file is there, and is another.
    """
    if "auto" not in proof.detectors:
        return proof
    names = read(run).detectors if is_declared(run) else tuple(_named(proof))
    return proof.model_copy(update={"detectors": names})


def detectors_of(proof: Proof) -> list[OpenDetector]:
    """How each declared detector is opened; the first one's distance is the headline.

    ``auto`` is Inception where its file is, and EfficientNet-lite0 always; ``effnet-64`` is the latter at another side.

    Raises:
        ConfigError: there is no such detector, or its file is missing.
    """
    return [
        partial(open_detector, name, weights_folder=weights.weights_folder(), side=side)
        for name, side in _chosen(proof)
    ]


def say_detectors(proof: Proof) -> None:
    """Say what will be measured, and what cannot be; to be called before any training.

    Raises:
        ConfigError: as ``detectors_of``.
    """
    names = [name for name, _ in _chosen(proof)]
    folder = weights.weights_folder()
    if "auto" in proof.detectors and "inception" not in names:
        why = weights.missing(weights.INCEPTION, folder)
        log.warning("no FID: %s; %s is measured, which is not comparable with any FID", why, EfficientNetLite0.frechet)
    else:
        log.info("measured by %s", ", ".join(names))


def _named(proof: Proof) -> dict[str, None]:
    """What ``auto`` means here, and the others as they are."""
    folder = weights.weights_folder()
    there = weights.state(weights.INCEPTION, folder) != "missing"
    meant = ("inception", "effnet") if there else ("effnet",)
    return dict.fromkeys(name for choice in proof.detectors for name in (meant if choice == "auto" else (choice,)))


def _chosen(proof: Proof) -> list[tuple[str, int]]:
    """(name, side) of each detector."""
    folder, chosen = weights.weights_folder(), list[tuple[str, int]]()
    for choice in _named(proof):
        name, _, side = choice.partition("-")
        if name == "effnet" and side:
            if not side.isdecimal() or int(side) < 32 or int(side) % 32:
                raise ConfigError(f"detectors: {choice}: the side is a multiple of 32 pixels, effnet-64 for one")
            chosen.append(("effnet", int(side)))
        else:
            chosen.append((resolve_detector(choice, folder), 299 if choice == "inception" else 224))
    return list(dict.fromkeys(chosen))
