"""Where the real photographs and weights lie, where there are any; and one Ray for the whole test session."""

from __future__ import annotations

import os
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

    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()
