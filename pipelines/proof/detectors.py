"""Which detectors a proof is measured by, and what is said of it before anything is trained."""

from __future__ import annotations

import logging
from functools import partial

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.detectors import EfficientNetLite0, OpenDetector, open_detector, resolve_detector
from pipelines.proof.plan import Proof

log = logging.getLogger("idm_curate")


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


def _chosen(proof: Proof) -> list[tuple[str, int]]:
    """(name, side) of each detector."""
    folder, chosen = weights.weights_folder(), list[tuple[str, int]]()
    for choice in proof.detectors:
        name, _, side = choice.partition("-")
        if choice == "auto":
            if weights.state(weights.INCEPTION, folder) != "missing":
                chosen.append((resolve_detector("inception", folder), 299))
            chosen.append(("effnet", 224))
        elif name == "effnet" and side:
            if not side.isdecimal() or int(side) < 32 or int(side) % 32:
                raise ConfigError(f"detectors: {choice}: the side is a multiple of 32 pixels, effnet-64 for one")
            chosen.append(("effnet", int(side)))
        else:
            chosen.append((resolve_detector(choice, folder), 224))
    return list(dict.fromkeys(chosen))
