"""A trainer of somebody else, driven as a user would: denoising-diffusion-pytorch's U-Net and DDPM on a StyleGAN zip.

``python ddpm_trainer.py train DATA OUT NIMG SEED`` and ``python ddpm_trainer.py sample SNAPSHOT FOLDER COUNT SEED``.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from PIL import Image

SIDE, BATCH = 16, 8


def new_diffusion() -> GaussianDiffusion:
    unet = Unet(dim=8, dim_mults=(1, 2), flash_attn=False)
    return GaussianDiffusion(unet, image_size=SIDE, timesteps=40, sampling_timesteps=4)


def train(data: str, out: str, nimg: str, seed: str) -> None:
    torch.manual_seed(int(seed))
    with zipfile.ZipFile(data) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        pixels = np.stack([np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    diffusion = new_diffusion()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-3)
    for step in range(int(nimg) // BATCH):
        loss = diffusion(images[torch.randint(len(images), (BATCH,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}", flush=True)
    torch.save(diffusion.state_dict(), Path(out) / f"network-{int(nimg):06d}.pt")


def sample(snapshot: str, folder: str, count: str, seed: str) -> None:
    torch.manual_seed(int(seed))
    diffusion = new_diffusion()
    diffusion.load_state_dict(torch.load(snapshot, weights_only=True))
    made = (diffusion.sample(batch_size=int(count)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(made):
        Image.fromarray(image).save(Path(folder) / f"{i:06d}.png")


if __name__ == "__main__":
    {"train": train, "sample": sample}[sys.argv[1]](*sys.argv[2:])
