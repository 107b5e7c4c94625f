"""A model of others as a restorer: IDM's severity decides what it is handed, and reads again what it made of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from idm_core import Restoration, Restorer
from idm_core.restorer import SEVERITY_ERROR, consistency
from pipelines.restorers import Model, Photograph


class BySeverity:
    """Passes of a model over the images that need it; its options and its report are those of ``idm_core.Restorer``.

    What the model returns is believed to be a candidate, whatever it is: the gates decide on it, and it is kept for
    them. Only from the second pass on is one that reads worse than the one before undone. An image that the model
    returns None for is left as it is, and reported as ``declined``.

    Attributes:
        config: that of the checkpoint that reads the severity, with one pass of one step.
    """

    def __init__(self, model: Model, model_sha256: str, reader: Restorer) -> None:
        self.config = replace(reader.config, steps=1, passes=1, trained={})
        self.model_sha256 = model_sha256
        self._model, self._reader = model, reader

    def restore(
        self,
        images: Sequence[Photograph],
        keys: Sequence[str],
        *,
        steps: int | None = None,
        passes: int | None = None,
        threshold: float | None = None,
    ) -> list[Restoration]:
        """As ``idm_core.Restorer.restore``.

        Raises:
            ValueError: ``steps`` are asked for, which only IDM has, or the numbers of images and keys differ.
            RuntimeError: the model raised something, or returned what is no list of images.
        """
        if steps is not None:
            raise ValueError(f"steps={steps}: only IDM has steps; leave restore.steps out")
        if len(images) != len(keys):
            raise ValueError(f"{len(images)} images but {len(keys)} keys")
        passes = self.config.passes if passes is None else passes
        threshold = self.config.threshold if threshold is None else threshold
        results = [
            Restoration(image, s, s, 0, 0, "clean", math.inf)
            for image, s in zip(images, self._reader.severity(images), strict=True)
        ]
        active = [i for i, r in enumerate(results) if r.severity >= threshold]
        for number in range(1, passes + 1):
            before = [results[i] for i in active]
            made = self._candidates([r.image for r in before], [f"{keys[i]}/{number}" for i in active])
            candidates = {}
            for i, old, image in zip(active, before, made, strict=True):
                if image is None:
                    results[i] = replace(old, stop="declined")
                elif image.shape != images[i].shape or image.dtype != np.uint8:  # nothing to measure: the stage says so
                    results[i] = replace(old, image=image, passes=number, evaluations=number, stop="passes")
                else:
                    candidates[i] = image
            severities = self._reader.severity([*candidates.values()])
            active = []
            for (i, image), severity in zip(candidates.items(), severities, strict=True):
                old = replace(results[i], evaluations=number)
                if number > 1 and severity > old.severity_after + SEVERITY_ERROR:
                    results[i] = replace(old, stop="severity_rose")
                    continue
                same = consistency(images[i], image)
                new = replace(old, image=image, severity_after=severity, passes=number, consistency=same)
                results[i] = replace(new, stop="clean" if severity < threshold else "passes")
                if severity >= threshold:
                    active.append(i)
        return results

    def _candidates(self, images: Sequence[Photograph], keys: Sequence[str]) -> list[Photograph | None]:
        if not images:
            return []
        name = type(self._model).__name__
        try:
            made = [*self._model.restore([image.copy() for image in images], keys)]
        except Exception as error:  # the boundary to code of others: it fails these samples by name, not the shard
            raise RuntimeError(f"{name} raised {type(error).__name__}: {error}") from error
        if len(made) != len(images):
            raise RuntimeError(f"{name} returned {len(made)} images for {len(images)}")
        for image in made:
            if image is not None and not isinstance(image, np.ndarray):
                raise RuntimeError(f"{name} returned a {type(image).__name__}; a candidate is an HxWx3 uint8 array")
        return made
