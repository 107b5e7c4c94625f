"""Where the real photographs and weights lie, where there are any; and one Ray for the whole test session."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names a folder that is no part of this project")
    return Path(value)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real photographs."""
    return _folder("IDM_DATA")


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of real weights."""
    return _folder("IDM_WEIGHTS")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine with two CPUs and two logical GPUs."""
    import ray

    ray.shutdown()  # a test before this one may have begun a Ray of its own in this process
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def curated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that is done, of 20 photographs, four copies of one of them and a file that is no image: for reading;
    what changes it works on a copy."""
    from click.testing import CliRunner
    from PIL import Image

    from pipelines.cli import cli
    from tests.photographs import write_folder

    source = write_folder(tmp_path_factory.mktemp("photographs") / "in", 20)
    first = source / "bee" / "photo 001.v1.png"
    copies = source / "copies"
    copies.mkdir()
    shutil.copy(first, copies / "exact.png")
    with Image.open(first) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copies / "mirrored.png")
        image.resize((128, 128)).save(copies / "enlarged.png")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=60)
    (copies / "compressed.jpg").write_bytes(buffer.getvalue())
    (copies / "no image.png").write_bytes(b"no image")
    root = tmp_path_factory.mktemp("runs") / "curated"
    arguments = ["run", "--dataset", "folder", "--source", source, "--run", root, "--shard-size", 8, "--workers", 0]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--until", "pack"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return root
