"""DINOv2's forward pass is timm's, with any weights; its file is looked for, named, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.detectors import Dinov2, open_detector, resolve_detector
from pipelines.detectors.dinov2 import class_token, positions
from tests.photographs import crops


def random_state(width: int, depth: int, side: int) -> dict[str, torch.Tensor]:
    """Weights of a ViT-.../14 under DINOv2's names, such that every part of it matters to the result."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int, scale: float = 0.1) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=draw)

    state = {"cls_token": some(1, 1, width), "pos_embed": some(1, 1 + side**2, width)}
    state |= {"patch_embed.proj.weight": some(width, 3, 14, 14), "patch_embed.proj.bias": some(width)}
    for i in range(depth):
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, shape in shapes.items():
            state |= {f"blocks.{i}.{name}.weight": some(*shape), f"blocks.{i}.{name}.bias": some(shape[0])}
        for name in ("norm1", "norm2"):
            state |= {f"blocks.{i}.{name}.weight": 1 + some(width), f"blocks.{i}.{name}.bias": some(width)}
        state |= {f"blocks.{i}.{name}.gamma": 0.5 + some(width) for name in ("ls1", "ls2")}
    return state | {"norm.weight": 1 + some(width), "norm.bias": some(width)}


def test_the_forward_pass_is_timms() -> None:
    from timm.models.vision_transformer import VisionTransformer

    state = random_state(width=128, depth=3, side=5)
    sizes = {"img_size": 70, "patch_size": 14, "embed_dim": 128, "depth": 3, "num_heads": 2}
    model = VisionTransformer(**sizes, init_values=1e-5, num_classes=0, global_pool="token").eval()
    model.load_state_dict(state)
    x = torch.randn(3, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = model(x), class_token(x, state)
    assert found.shape == (3, 128)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_positions_of_another_number_of_patches() -> None:
    """A ramp stays one inside, nearly, as bicubic filters have it; the class token's place is not touched."""
    ramp = torch.arange(37.0)[:, None].expand(37, 37).reshape(1, -1, 1)
    embedding = torch.cat([torch.full((1, 1, 1), 99.0), ramp], dim=1)
    found = positions(embedding, 16, 16)
    assert found.shape == (1, 257, 1) and found[0, 0, 0] == 99
    rows = found[0, 1:, 0].reshape(16, 16)
    assert torch.allclose(rows, rows[:, :1].expand(16, 16), atol=1e-4)
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    assert torch.allclose(rows[1:-1, 0], expected[1:-1], atol=0.08)
    assert not torch.allclose(rows[1:-1, 0], ((torch.arange(16) + 0.5) * 37 / 16 - 0.5)[1:-1], atol=0.08)
    assert positions(embedding, 37, 37) is embedding


def test_it_is_opened_from_its_file_and_takes_images(tmp_path: Path) -> None:
    torch.save(random_state(width=768, depth=12, side=37), tmp_path / weights.DINOV2.file)
    assert resolve_detector("dinov2", tmp_path) == "dinov2"
    detector = open_detector("dinov2", "cpu", tmp_path)
    images = np.stack(crops(3, side=40))
    found = detector(images)
    assert (detector.frechet, len(detector.sha256)) == ("FD-DINOv2-B", 64)
    assert found.shape == (3, detector.dimension) and np.isfinite(found).all()
    assert np.abs(found[1:2] - detector(images[1:2])).max() < 1e-3 * np.abs(found).max()


def test_another_file_is_refused_and_a_missing_one_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dinov2_vitb14_pretrain\.pth is missing"):
        resolve_detector("dinov2", tmp_path)
    torch.save(random_state(width=64, depth=1, side=3), tmp_path / weights.DINOV2.file)
    with pytest.raises(ConfigError, match=r"is no DINOv2 ViT-B/14; it is from https"):
        Dinov2("cpu", tmp_path)
