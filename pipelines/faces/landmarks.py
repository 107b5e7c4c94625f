"""What follows from five landmarks: the aligned crop, the head's pose, and how far two sets of them lie apart."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.faces.face import Bytes3, Embedding, Points

#: Where ArcFace puts the five landmarks, in shares of the crop's side (Deng et al., "ArcFace", 2019; insightface gives
#: them as middles of pixels in a crop of 112).
TEMPLATE: Final[Points] = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) + 0.5
) / 112

# A mean head in units of eye distance, x to the right, y down and z towards the viewer, from the middle of the eyes.
# x and y are the mean of what MTCNN and dlib find in photographs of people who look about straight ahead; depths are
# an adult's: the tip of the nose 30 mm and the corners of the mouth 6 mm before the eyes, which are 63 mm apart.
_HEAD: Final = np.array([[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.59, 0.48], [-0.46, 1.085, 0.1], [0.46, 1.085, 0.1]])


def five_of_68(points: npt.NDArray[np.float64]) -> Points:
    """The five landmarks of iBUG's 68: middles of the eyes (36-41, 42-47), tip of the nose, corners of the mouth."""
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def similarity(points: npt.NDArray[np.float64], onto: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The turn, scale and shift that bring N x 2 ``points`` nearest to ``onto``: a 2 x 3 matrix (Umeyama, 1991).

    Raises:
        ValueError: the points are all in one place.
    """
    source, target = np.asarray(points, np.float64), np.asarray(onto, np.float64)
    mean, mean_onto = source.mean(0), target.mean(0)
    source, target = source - mean, target - mean_onto
    variance = float((source**2).sum())
    if not variance > 1e-12:
        raise ValueError("the points are all in one place: nothing can be aligned by them")
    # In two dimensions Umeyama's singular values come down to a complex number: scale and turn in one.
    cosine = float((source * target).sum()) / variance
    sine = float((source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]).sum()) / variance
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([turn, mean_onto - turn @ mean])


def align(image: Bytes3, landmarks: Points, size: int = 112, template: Points = TEMPLATE) -> Bytes3:
    """Crop a face so that its landmarks lie where ``template`` says, in a square of ``size`` px; black outside.

    In double precision, so that it repeats to the byte. A reduction is averaged over, not sampled: first whole blocks
    of pixels, then as many bilinear samples per output pixel as the rest of the reduction takes.

    Args:
        image: H x W x 3, uint8.
        landmarks: 5 x 2, pixels of ``image``.
        size: side of the crop, px.
        template: 5 x 2, where they belong, in shares of the crop's side.
    """
    from PIL import Image
    from scipy import ndimage

    back = _inverse(similarity(landmarks, template * size - 0.5))
    reduction = math.hypot(back[0, 0], back[1, 0])  # image pixels per crop pixel
    block = max(1, int(reduction / 2))
    pixels = np.asarray(Image.fromarray(image).reduce(block) if block > 1 else image, np.float64)
    samples = max(1, math.ceil(reduction / block))
    at = (np.arange(size * samples) + 0.5) / samples - 0.5
    x = back[0, 0] * at[None, :] + back[0, 1] * at[:, None] + back[0, 2]
    y = back[1, 0] * at[None, :] + back[1, 1] * at[:, None] + back[1, 2]
    where = [(y + 0.5) / block - 0.5, (x + 0.5) / block - 0.5]
    crop = np.stack([ndimage.map_coordinates(pixels[..., c], where, order=1, mode="constant") for c in range(3)], -1)
    crop = crop.reshape(size, samples, size, samples, 3).mean((1, 3))
    return np.asarray(np.rint(crop), np.uint8)


def _inverse(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    turn = np.linalg.inv(matrix[:, :2])
    return np.column_stack([turn, -turn @ matrix[:, 2]])


def pose(landmarks: Points) -> tuple[float, float, float]:
    """Yaw, pitch and roll of the head in degrees, to about ten degrees: five points do not say more.

    A mean head is laid through the landmarks under scaled orthographic projection: least squares, then the nearest
    rotation (DeMenthon and Davis, "Model-based object pose", 1995, without the perspective iteration). All three are 0
    for a mean face that looks into the camera. Yaw is positive for a face turned to the image's right, pitch for one
    that looks up, roll for one turned clockwise.
    """
    centred = np.asarray(landmarks, np.float64) - np.mean(landmarks, 0)
    projection, *_ = np.linalg.lstsq(_HEAD - _HEAD.mean(0), centred, rcond=None)  # 3 2
    left, _, right = np.linalg.svd(projection.T, full_matrices=False)
    rows = left @ right
    # With x to the right and y down, an axis towards the viewer makes the frame a left-handed one.
    depth = np.cross(rows[1], rows[0])
    nose = np.array([rows[0, 2], rows[1, 2], -depth[2]])  # where the face looks
    yaw = math.atan2(nose[0], nose[2])
    pitch = math.atan2(-nose[1], math.hypot(nose[0], nose[2]))
    eyes = np.asarray(landmarks[1], np.float64) - np.asarray(landmarks[0], np.float64)
    roll = math.atan2(eyes[1], eyes[0])
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


def eye_distance(landmarks: Points) -> float:
    """Between the eyes, pixels."""
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


def landmark_error(landmarks: Points, reference: Points) -> float:
    """Mean distance of the five landmarks from the reference's, in units of the reference's eye distance."""
    apart = np.linalg.norm(np.asarray(landmarks, np.float64) - reference, axis=1)
    return float(apart.mean()) / max(eye_distance(reference), 1e-12)


def identity_cosine(a: Embedding, b: Embedding) -> float:
    """Cosine between two embeddings of length 1: 1 is the same face, about 0 (dlib: 0.8) two strangers."""
    return float(np.clip(np.dot(a.astype(np.float64), b.astype(np.float64)), -1.0, 1.0))
