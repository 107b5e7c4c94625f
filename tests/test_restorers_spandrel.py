"""Networks that spandrel knows as restorers: real architectures, small, with random weights."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from idm_core.restorer import to_images, to_tensor
from manifests import rundir
from manifests.errors import ConfigError
from pipelines.restorers import digest, open_restorer
from pipelines.restorers.contract import check, photographs
from tests.photographs import crops, write_folder
from tests.test_restorers import rows, run

spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed: pip install 'idm-curate[spandrel]'")

from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.RestoreFormer import RestoreFormer  # noqa: E402

from pipelines.restorers.spandrel_model import FACE_SIDE, SpandrelModel  # noqa: E402


def weights(network: Any, scale: float = 0.1) -> dict[str, torch.Tensor]:
    """Random ones that change an image a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    return {name: t.contiguous() for name, t in network.state_dict().items()}


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real-ESRGAN's small network at scale 2: it adds something to the image enlarged by nearest neighbours."""
    path = tmp_path_factory.mktemp("weights") / "compact_x2.safetensors"
    save_file(weights(Compact(num_feat=8, num_conv=2, upscale=2)), path)
    return path


def test_the_output_at_the_networks_scale_is_reduced_to_the_sources_size(compact: Path) -> None:
    image = crops(4)[2]
    network = Compact(num_feat=8, num_conv=2, upscale=2)
    weights(network)
    with torch.inference_mode():
        y = network(to_tensor([image])).clamp(0, 1)
        assert y.shape == (1, 3, 128, 128)
        expected = to_images(F.interpolate(y, size=(64, 64), mode="bicubic", antialias=True))[0]
    made = SpandrelModel(compact, "cpu").restore([image], ["key"])[0]
    assert made is not None and np.array_equal(made, expected) and not np.array_equal(made, image)


def test_a_large_image_in_tiles_is_the_image_as_a_whole(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network sees no further than a tile overlaps: so no seam, and what lies inside is what it would be."""
    image = np.concatenate([np.concatenate(crops(12)[i : i + 6], axis=1) for i in (0, 6)])[:90, :380]
    model = SpandrelModel(compact, "cpu")
    shapes = []
    monkeypatch.setattr(model, "_run", lambda x, whole=model._run: (shapes.append(tuple(x.shape[2:])), whole(x))[1])
    tiled = model.restore([image], ["key"])[0]
    assert len(shapes) == 2 and max(shapes) <= (256, 256)
    with torch.inference_mode():
        whole = to_images(model._run(to_tensor([image])))[0]
    assert tiled is not None and tiled.shape == image.shape
    inner = np.abs(tiled.astype(int) - whole)[8:-8, 8:-8]
    assert inner.max() <= 3 and (inner > 1).mean() < 0.001


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_what_training_scripts_save_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"esrgan{suffix}"
    torch.save({"params_ema": weights(ESRGAN(num_filters=8, num_blocks=1, scale=4), 0.05)}, path)
    image = crops(4)[2][:40, :33]
    made = SpandrelModel(path, "cpu").restore([image], ["key"])[0]
    assert made is not None and made.shape == image.shape and made.dtype == np.uint8
    assert not np.array_equal(made, image)


class Payload:
    """What unpickling would execute."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"params": Payload(tmp_path / "executed")}, tmp_path / "pickled.pth")
    (tmp_path / "renamed.safetensors").write_bytes((tmp_path / "pickled.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # the layout of TorchScript
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/code/__torch__.py", "raise SystemExit")
    for name in ("pickled.pth", "renamed.safetensors", "script.pt"):
        with pytest.raises(ConfigError, match="pickled objects or TorchScript"):
            SpandrelModel(tmp_path / name, "cpu")
    assert not (tmp_path / "executed").exists()


def test_what_is_no_restorer_of_rgb_is_refused(compact: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file(
        weights(Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=1)), tmp_path / "grey.safetensors"
    )
    whole = weights(Compact(num_feat=8, num_conv=2, upscale=2))
    save_file({k: t for k, t in whole.items() if k != "body.2.weight"}, tmp_path / "part.safetensors")
    (tmp_path / "weights.bin").write_bytes(compact.read_bytes())
    for name, said in [
        ("other.safetensors", "no network"),
        ("grey.safetensors", "takes 1 channels"),
        ("part.safetensors", "do not fit"),
        ("weights.bin", "expected .safetensors"),
    ]:
        with pytest.raises(ConfigError, match=said):
            open_restorer(f"spandrel:{tmp_path / name}")


def test_noise_is_drawn_by_the_key_and_the_global_generator_is_left_alone(compact: Path) -> None:
    """GFPGAN's decoder draws from the global generator; here a network that does nothing else."""
    model = SpandrelModel(compact, "cpu")
    noisy = model._network
    noisy._call_fn = lambda network, x: x.repeat(1, 1, 2, 2) + 0.1 * torch.randn(1, 3, 128, 128)
    image = crops(4)[2]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, again = model.restore([image, image, image], ["a", "b", "a"])
    assert np.array_equal(a, again) and not np.array_equal(a, b)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_for_faces_sees_square_images_that_it_does_not_reduce(tmp_path: Path) -> None:
    network = RestoreFormer(n_embed=16, embed_dim=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(16,),
                            z_channels=8, head_size=8)  # fmt: skip
    save_file(weights(network, 0.05), tmp_path / "faces.safetensors")
    model = SpandrelModel(tmp_path / "faces.safetensors", "cpu")
    assert model._network.purpose == "FaceSR"
    sides = []
    model._network._call_fn = lambda network, x: (sides.append((x.is_contiguous(), *x.shape)), 1 - x)[1]
    square, wide = crops(4)[2], crops(4)[2][:60]
    large = np.zeros((FACE_SIDE + 1, FACE_SIDE + 1, 3), np.uint8)
    made = model.restore([square, wide, large], ["a", "b", "c"])
    assert made[1] is None and made[2] is None and made[0] is not None and made[0].shape == square.shape
    assert sides == [(True, 1, 3, FACE_SIDE, FACE_SIDE)]
    assert np.abs(made[0].astype(int) - (255 - square.astype(int))).mean() < 3


def test_the_clauses_that_no_weights_can_break_hold_for_random_ones(compact: Path) -> None:
    found = dict(check(open_restorer(f"spandrel:{compact}"), photographs()))
    kept = ["deterministic per key", "independent of the batch", "same size out", "its input is no success"]
    assert [found[clause] for clause in [*kept, "knobs have an effect"]] == [None] * 5


def test_a_run_with_weights_of_others(compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(compact.parent)  # a worker has another working directory: the path is kept whole
    source = write_folder(tmp_path / "in", 6)
    output = run(source, tmp_path / "run", f"spandrel:{compact.name}")
    assert "6" in output
    stored = rundir.read(str(tmp_path / "run")).config["restore"]
    assert (stored["restorer"], stored["sha256"]) == (f"spandrel:{compact}", digest(f"spandrel:{compact}"))
    found = rows(tmp_path / "run")
    assert {r["status"] for r in found} == {"restored", "kept_original"}
    assert all(r["psnr_source"] is not None for r in found if r["status"] == "restored")
