"""Faces: each model finds them where they are, tells people apart, and answers the same whatever was asked before."""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as skimage_data

from manifests.errors import ConfigError
from pipelines.faces import (
    COLUMNS,
    Face,
    FaceModel,
    align,
    compare,
    identity_cosine,
    landmark_error,
    open_faces,
    pose,
    resolve_faces,
)
from pipelines.faces.landmarks import TEMPLATE, similarity

Pixels = npt.NDArray[np.uint8]
ASTRONAUT: Pixels = np.ascontiguousarray(skimage_data.astronaut()[:300, 60:360])
NOISE: Pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
FRONTAL = TEMPLATE * 112 - 0.5


@pytest.fixture(scope="module", params=["mobilefacenet", "dlib"])
def model(request: pytest.FixtureRequest) -> FaceModel:
    """Each model that this machine can open."""
    folder = Path(os.environ.get("IDM_WEIGHTS", "/nonexistent"))
    try:
        opened = open_faces(request.param, folder)
    except ConfigError as error:
        pytest.skip(str(error))
    assert opened is not None and opened.name == request.param
    return opened


@pytest.fixture(scope="module")
def face(model: FaceModel) -> Face:
    """The astronaut's, found once."""
    found = model.detect(ASTRONAUT)
    assert len(found) == 1
    return found[0]


@dataclass(frozen=True)
class People:
    """Photographs of some people, with the face and the identity that a model finds in each."""

    who: list[str]
    images: list[Pixels]
    faces: list[Face]
    identities: npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def people(model: FaceModel, data: Path) -> People:
    """Ten photographs each of ten people."""
    with zipfile.ZipFile(data / "lfw-pairs.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        images = [np.asarray(Image.open(BytesIO(archive.read(n))).convert("RGB")) for n in names]
    found = [model.detect(image) for image in images]
    assert all(found), "a face in every photograph"
    faces = [f[0] for f in found]
    identities = np.stack([model.embed(i, f.landmarks) for i, f in zip(images, faces, strict=True)])
    return People([n.split("/")[-2] for n in names], images, faces, identities)


def test_identity_separates_people(model: FaceModel, people: People) -> None:
    """Area under the ROC curve over all 4,950 pairs: the chance that two photographs of one person are more alike."""
    first, second = np.triu_indices(len(people.who), 1)
    cosine = (people.identities @ people.identities.T)[first, second]
    same = np.array(people.who)[first] == np.array(people.who)[second]
    higher = (cosine[same][:, None] > cosine[~same][None, :]).mean()
    assert len(people.who) == 100 and same.sum() == 450
    assert higher >= 0.99
    assert (cosine[same] > model.same_person).mean() >= 0.97
    assert (cosine[~same] > model.same_person).mean() <= 0.03


def test_comparing_two_people_shows_in_the_columns(model: FaceModel, people: People) -> None:
    other = people.who.index(next(w for w in people.who if w != people.who[0]))
    row = compare(model, people.images[0], people.images[other])
    assert row["identity_cosine"] < model.same_person
    assert row["landmark_error"] > 0.02


def test_an_embedding_does_not_depend_on_what_came_before(model: FaceModel, people: People) -> None:
    for i in (7, 3, 99, 3):
        again = model.embed(people.images[i].copy(), people.faces[i].landmarks)
        assert again.tobytes() == people.identities[i].tobytes()
        assert again.dtype == np.float32 and np.linalg.norm(again) == pytest.approx(1, abs=1e-6)


def test_the_face_is_where_it_is(face: Face) -> None:
    left, top, right, bottom = face.box
    assert 60 < left < 150 < right < 260 and 30 < top < 120 < bottom < 220
    assert ((face.landmarks >= [left, top]) & (face.landmarks <= [right, bottom])).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_landmarks_follow_a_mirror(model: FaceModel, face: Face) -> None:
    mirrored = model.detect(np.ascontiguousarray(ASTRONAUT[:, ::-1]))[0].landmarks
    back = mirrored[[1, 0, 2, 4, 3]] * [-1, 1] + [ASTRONAUT.shape[1] - 1, 0]
    assert landmark_error(back, face.landmarks) < 0.06


def test_landmarks_follow_a_shift_and_a_scale(model: FaceModel, face: Face) -> None:
    shifted = np.zeros_like(ASTRONAUT)
    shifted[12:, 25:] = ASTRONAUT[:-12, :-25]
    found = model.detect(shifted)[0].landmarks
    assert landmark_error(found - [25, 12], face.landmarks) < 0.06
    large = np.asarray(Image.fromarray(ASTRONAUT).resize((4000, 4000), Image.Resampling.BICUBIC))
    found = model.detect(large)[0].landmarks
    assert landmark_error((found + 0.5) * (300 / 4000) - 0.5, face.landmarks) < 0.06
    cosine = identity_cosine(model.embed(large, found), model.embed(ASTRONAUT, face.landmarks))
    assert cosine > (1 + model.same_person) / 2


@pytest.mark.parametrize("name", ["noise", "black", "white", "tiny", "sliver"])
def test_there_is_no_face_where_there_is_none(model: FaceModel, name: str) -> None:
    image = {
        "noise": NOISE,
        "black": np.zeros((300, 200, 3), np.uint8),
        "white": np.full((200, 300, 3), 255, np.uint8),
        "tiny": NOISE[:16, :16],
        "sliver": NOISE[:8, :],
    }[name]
    assert model.detect(np.ascontiguousarray(image)) == []


def test_a_grey_photograph_has_the_same_face(model: FaceModel, face: Face) -> None:
    grey = np.asarray(Image.fromarray(ASTRONAUT).convert("L").convert("RGB"))
    row = compare(model, ASTRONAUT, grey)
    assert row["faces"] == row["faces_after"] == 1 and row["landmark_error"] < 0.1
    assert row["identity_cosine"] > model.same_person


def test_a_face_is_itself(model: FaceModel, face: Face) -> None:
    row = compare(model, ASTRONAUT, ASTRONAUT.copy())
    assert list(row) == [f.name for f in COLUMNS]
    assert (row["identity_cosine"], row["landmark_error"]) == (1.0, 0.0)
    assert row["face_model"] == model.name and row["faces"] == row["faces_after"] == 1
    np.testing.assert_allclose(row["face_landmarks"], face.landmarks.ravel(), atol=1e-3)
    table = pa.Table.from_pylist([row, compare(None, ASTRONAUT)], schema=pa.schema(COLUMNS))
    assert table["faces"].to_pylist() == [1, None]


def test_a_face_that_only_the_candidate_shows_is_compared_at_its_place(model: FaceModel) -> None:
    row = compare(model, NOISE, ASTRONAUT[:256, :256])
    assert (row["faces"], row["faces_after"], row["landmark_error"]) == (0, 1, None)
    assert row["identity_cosine"] < model.same_person and row["face_box"] is not None
    nothing = compare(model, NOISE, NOISE)
    assert nothing["faces"] == nothing["faces_after"] == 0
    assert [n for n, v in nothing.items() if v is not None] == ["face_model", "faces", "faces_after"]


def test_without_a_candidate_only_the_source_is_described(model: FaceModel) -> None:
    row = compare(model, ASTRONAUT)
    assert row["faces"] == 1 and row["faces_after"] is None and row["identity_cosine"] is None
    with pytest.raises(ValueError, match="size"):
        compare(model, ASTRONAUT, NOISE)


# -- five landmarks ---------------------------------------------------------------------------------------------------


def test_an_aligned_crop_is_cut_as_it_is() -> None:
    crop = ASTRONAUT[50:162, 90:202]
    np.testing.assert_array_equal(align(ASTRONAUT, FRONTAL + np.array([90, 50])), crop)


def test_a_reduction_is_averaged_and_repeats() -> None:
    checks = (np.indices((900, 900)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    for factor in (2.0, 3.7, 7.6):
        crop = align(checks, FRONTAL * factor)
        assert np.abs(crop[2:-2, 2:-2].astype(float) - 127.5).max() < 30  # a sampled one holds 0 and 255
        assert crop.tobytes() == align(checks.copy(), FRONTAL * factor).tobytes()


def test_outside_is_black_and_a_face_without_extent_is_refused() -> None:
    assert align(ASTRONAUT, FRONTAL - 1000).max() == 0
    with pytest.raises(ValueError, match="one place"):
        align(ASTRONAUT, np.ones((5, 2)))


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3), st.floats(0.05, 30), st.floats(-999, 999), st.floats(-999, 999))
def test_a_similarity_is_found_again(angle: float, scale: float, x: float, y: float) -> None:
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = similarity(FRONTAL, FRONTAL @ turn.T + [x, y])
    np.testing.assert_allclose(matrix, np.column_stack([turn, [x, y]]), atol=1e-6 * max(1.0, scale))


def head(yaw: float, pitch: float, roll: float) -> npt.NDArray[np.float64]:
    """Landmarks of a head in a pose, seen from afar: built from angles alone, with the depths of the model."""
    from pipelines.faces.landmarks import _HEAD

    y, p, r = (math.radians(v) for v in (yaw, pitch, roll))
    turn_up = np.array([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]])
    turn_right = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    turn_clockwise = np.array([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    return np.asarray((_HEAD @ (turn_clockwise @ turn_right @ turn_up).T)[:, :2] * 80 + 200)


@pytest.mark.parametrize("angles", [(0, 0, 0), (35, 0, 0), (-35, 0, 0), (0, 25, 0), (0, -25, 0), (0, 0, 40), (9, 9, 5)])
def test_pose_reads_back_what_a_head_was_turned_by(angles: tuple[float, float, float]) -> None:
    found = pose(head(*angles))
    np.testing.assert_allclose(found, angles, atol=3)


def test_a_mirrored_pose_is_the_mirrored_one() -> None:
    points = head(20, -10, 15) + np.array([[1, 0], [0, 2], [-1, 1], [0, 0], [2, 1]])
    mirrored = points[[1, 0, 2, 4, 3]] * [-1, 1]
    np.testing.assert_allclose(pose(mirrored), np.array(pose(points)) * [-1, 1, -1], atol=1e-6)


def test_landmark_error_counts_in_eye_distances() -> None:
    face = FRONTAL * 3
    eyes = np.linalg.norm(face[1] - face[0])
    assert landmark_error(face, face) == 0
    assert landmark_error(face + np.array([eyes, 0]), face) == pytest.approx(1)
    assert landmark_error(face * 2 + [2 * eyes / 4, 0], face * 2) == pytest.approx(0.25)


# -- opening ----------------------------------------------------------------------------------------------------------


def test_off_is_none_and_what_is_unknown_is_refused(tmp_path: Path) -> None:
    assert open_faces("off", tmp_path) is None
    with pytest.raises(ConfigError, match="auto, facexlib, mobilefacenet, dlib, off"):
        open_faces("opencv", tmp_path)


def test_a_named_model_says_which_file_goes_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_faces("facexlib", tmp_path)
    for file in ("detection_Resnet50_Final.pth", "recognition_arcface_ir_se50.pth"):
        assert f"{tmp_path / file} is missing" in str(caught.value)
    assert "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d" in str(caught.value)


def test_auto_takes_the_first_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"facexlib", "ai_edge_litert"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: object() if name in there else None)
    assert resolve_faces("auto", tmp_path) is None
    for file in ("mtcnn.safetensors", "mobilefacenet.tflite"):
        (tmp_path / file).touch()
    assert resolve_faces("auto", tmp_path) == "mobilefacenet"
    for file in ("detection_Resnet50_Final.pth", "recognition_arcface_ir_se50.pth"):
        (tmp_path / file).touch()
    assert resolve_faces("auto", tmp_path) == "facexlib"
    with pytest.raises(ConfigError, match=r"dlib-bin is not installed; pip install 'idm-curate\[faces\]'"):
        resolve_faces("dlib", tmp_path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x02}" + b"x" * 64])
@pytest.mark.parametrize("choice", ["mobilefacenet", "facexlib"])
def test_a_damaged_file_is_named(choice: str, content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra `faces` is not installed")
    files = {
        "mobilefacenet": ("mtcnn.safetensors", "mobilefacenet.tflite"),
        "facexlib": ("detection_Resnet50_Final.pth", "recognition_arcface_ir_se50.pth"),
    }[choice]
    for file in files:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=files[0]):
        open_faces(choice, tmp_path)


@pytest.fixture(scope="module")
def facexlib_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """facexlib's own networks with random weights, saved in the layout of its files."""
    import warnings

    import torch
    from facexlib.recognition.arcface_arch import Backbone

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from facexlib.detection.retinaface import RetinaFace

        detector = RetinaFace("resnet50", device="cpu")
    folder = tmp_path_factory.mktemp("facexlib")
    state: dict[str, Any] = {f"module.{k}": v for k, v in detector.state_dict().items()}
    torch.save(state, folder / "detection_Resnet50_Final.pth")
    torch.save(Backbone(50, 0.6, "ir_se").state_dict(), folder / "recognition_arcface_ir_se50.pth")
    return folder


def test_facexlibs_files_are_loaded_and_used(facexlib_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.faces.facexlib_model.THRESHOLD", 0.0)  # random weights are sure of nothing
    model = open_faces("auto", facexlib_folder)
    assert model is not None and model.name == "facexlib"
    found = model.detect(ASTRONAUT[:200])
    assert found and found == sorted(found, key=lambda f: -f.area)
    assert all(f.landmarks.shape == (5, 2) and np.isfinite(f.landmarks).all() for f in found)
    model.detect(ASTRONAUT[:16, :16])
    face = FRONTAL + np.array([90, 50])
    identity = model.embed(ASTRONAUT, face)
    assert identity.shape == (512,) and identity.dtype == np.float32 and np.linalg.norm(identity) == pytest.approx(1)
    mirrored = np.ascontiguousarray(align(ASTRONAUT, face)[:, ::-1])
    np.testing.assert_allclose(model.embed(mirrored, FRONTAL), identity, atol=1e-5)
