"""What a restoration did to a face: a candidate beside its source, as columns of the manifest."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from manifests import schema
from pipelines.faces.face import Bytes3, Face, FaceModel
from pipelines.faces.landmarks import identity_cosine, landmark_error, pose

#: The columns that ``compare`` fills.
COLUMNS: Final = schema.FACES


def compare(model: FaceModel | None, source: Bytes3, candidate: Bytes3 | None = None) -> dict[str, Any]:
    """Look at the largest face of a source, and at the same face in a candidate: exactly ``COLUMNS``.

    Identity is read at the same place in both: at the source's landmarks, or at the candidate's where only the
    candidate shows a face. So it is there whenever either does, and a face that has moved counts as changed. The
    landmark error needs a face in both; of the candidate's faces the one whose landmarks lie nearest is taken.

    Args:
        model: None fills every column with None.
        source: H x W x 3 uint8, RGB.
        candidate: of the same size; None, for a sample that was not restored, leaves its columns None.

    Raises:
        ValueError: the sizes differ.
    """
    row: dict[str, Any] = dict.fromkeys(f.name for f in COLUMNS)
    if model is None:
        return row
    if candidate is not None and candidate.shape != source.shape:
        raise ValueError(f"source and candidate differ in size: {source.shape} and {candidate.shape}")
    before = model.detect(source)
    after = model.detect(candidate) if candidate is not None else []
    row |= {"face_model": model.name, "faces": len(before)}
    if candidate is not None:
        row["faces_after"] = len(after)
    if not before and not after:
        return row
    face = (before or after)[0]
    row |= _where(face)
    if candidate is not None:
        cosine = identity_cosine(model.embed(source, face.landmarks), model.embed(candidate, face.landmarks))
        row |= {"identity_cosine": round(cosine, 6), "same_person": model.same_person}
    if before and after:
        row["landmark_error"] = round(min(landmark_error(f.landmarks, face.landmarks) for f in after), 6)
    return row


def identity_margin(model: FaceModel, source: Bytes3, candidate: Bytes3) -> float | None:
    """How alike the largest face is in both: 1 the same, 0 as the model asks of one person; None without a face."""
    found = compare(model, source, candidate)
    cosine, least = found["identity_cosine"], found["same_person"]
    return None if cosine is None else float((cosine - least) / (1 - least))


def _where(face: Face) -> dict[str, Any]:
    yaw, pitch, roll = pose(face.landmarks)
    return {
        "face_box": [round(v, 3) for v in face.box],
        "face_landmarks": np.round(face.landmarks.ravel(), 3).tolist(),
        "face_yaw": round(yaw, 2),
        "face_pitch": round(pitch, 2),
        "face_roll": round(roll, 2),
    }
