"""FID's Inception from a local file: clean-fid's features of it, its absence said once, and no other file taken."""

from __future__ import annotations

import hashlib
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.detectors import EfficientNetLite0, Inception, open_detector, resolve_detector
from tests.photographs import crops, png


class Stand(torch.nn.Module):
    """What the published file has on its outside: ``layers`` from N 3 299 299 in about -1 to 1 to 2048 features."""

    def __init__(self) -> None:
        super().__init__()
        pooled = [torch.nn.AdaptiveAvgPool2d(13), torch.nn.Flatten(), torch.nn.Linear(3 * 13 * 13, 2048)]
        self.layers = torch.nn.Sequential(*pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of Inception's name and form, random weights."""
    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Stand()).save(str(folder / weights.INCEPTION.file))
    return folder


@pytest.fixture
def allowed(stand: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, whose file is the one that is meant."""
    sha256 = hashlib.sha256((stand / weights.INCEPTION.file).read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "INCEPTION", replace(weights.INCEPTION, sha256=sha256))
    return stand


def test_its_features_are_clean_fids(allowed: Path, tmp_path: Path) -> None:
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = crops(5, side=48)
    for i, pixels in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(png(pixels))
    detector = Inception("cpu", allowed)
    detector.batch = 2
    found = detector(np.stack(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = InceptionV3W(str(allowed), download=False)
    expected = get_folder_features(
        str(tmp_path), model, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
    )
    assert found.shape == (5, detector.dimension) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert detector(np.stack(images)[:0]).shape == (0, 2048)


def test_a_file_that_is_another_one_is_refused(stand: Path) -> None:
    for attempt in (lambda: Inception("cpu", stand), lambda: resolve_detector("auto", stand)):
        with pytest.raises(ConfigError, match=r"inception-2015-12-05\.pt is not the file that is meant.*f58cb9b6"):
            attempt()


def test_auto_takes_it_where_it_is(allowed: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_detector("auto", allowed) == resolve_detector("inception", allowed) == "inception"
    assert open_detector("inception", "cpu", allowed).frechet == "FID"
    assert not caplog.records


def test_its_absence_is_said_once_with_where_it_comes_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "idm_curate"):
        assert resolve_detector("auto", tmp_path) == "effnet"
    (said,) = [record.getMessage() for record in caplog.records]
    for word in ("no FID", str(tmp_path / "inception-2015-12-05.pt"), "nvlabs-fi-cdn", "f58cb9b6", "FD-EffNet"):
        assert word in said
    with pytest.raises(ConfigError, match="is missing"):
        resolve_detector("inception", tmp_path)
    with pytest.raises(ConfigError, match="auto, inception, effnet, dinov2"):
        resolve_detector("vgg", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_inceptions_distances_are_called_fid_and_kid() -> None:
    assert (Inception.frechet, Inception.kernel) == ("FID", "KID")
    assert "FID" not in EfficientNetLite0.frechet and "KID" not in EfficientNetLite0.kernel
