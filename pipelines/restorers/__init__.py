"""Whatever restores, behind one contract: IDM, weights of others that spandrel knows, or a class of yours.

restorer = open_restorer("idm-64")  # or mine.safetensors, spandrel:weights/RealESRGAN.pth, python:mine:Mine
results = restorer.restore(images, keys)  # HxWx3 uint8 of any size => image, severity, severity_after, passes, ...

IDM reads the severity of every image itself. All others are a ``Model``: they are handed only what IDM's severity
network finds damaged, and it reads again what they made of it (``by_severity``). So a good photograph is left alone, to
the byte, whoever restores; the severities of two runs are one measure; and no restorer is its own judge.

``python:`` executes your code, so it is only ever taken from a run's own configuration: no policy, manifest or dataset
can name it. A run that is continued runs the class that its ``run.json`` names.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError

if TYPE_CHECKING:
    from idm_core import Restoration
    from idm_core import Restorer as IDM
    from idm_core.checkpoint import Config

Photograph = npt.NDArray[np.uint8]  # HxWx3, RGB

#: Whose severity network speaks for restorers that have none.
SEVERITY: Final = "idm-64"


class Model(Protocol):
    """The least that a restorer of yours has to do: ``python:module:Class`` is called with the device, and restores.

    What it returns has to be a function of each image, its key and the class alone: not of the images beside it, their
    order, or what it was called with before. Draw noise from a generator that is seeded with the key.

    The class may have an attribute ``sha256``, for what it loads beside its module: both are pinned in ``run.json``.
    """

    def restore(self, images: Sequence[Photograph], keys: Sequence[str]) -> Sequence[Photograph | None]:
        """A candidate for each image, of the same size; None where there is none to offer, never the image itself.

        Args:
            images: HxWx3 uint8, any sizes; damaged, or made by this model of what was. Yours to write to.
            keys: one for each image, another one in each pass.

        Raises:
            Exception: whatever it is, it fails the samples that raise it alone, with its message as their reason.
        """
        ...


class Restorer(Protocol):
    """What the restore stage calls and the contract checks; ``idm_core.Restorer`` is one.

    Attributes:
        config: has the defaults of ``threshold``, ``steps`` and ``passes``.
        model_sha256: of what was loaded.
    """

    config: Config
    model_sha256: str

    def restore(
        self,
        images: Sequence[Photograph],
        keys: Sequence[str],
        *,
        steps: int | None = None,
        passes: int | None = None,
        threshold: float | None = None,
    ) -> list[Restoration]:
        """Restore the images that need it, and report on each.

        Args:
            images: HxWx3 uint8, any sizes.
            keys: one for each image; seeds its noise.
            steps: evaluations of one pass.
            passes: most passes.
            threshold: severity under which an image is left alone. All three come from ``config`` when None.

        Raises:
            ValueError: a knob is set that this restorer does not have.
            RuntimeError: it failed.
        """
        ...


def reads_severity(name: str) -> bool:
    """Whether a restorer reads the severity itself: IDM does, no other is asked to."""
    return not name.startswith(("spandrel:", "python:"))


def file_of(name: str) -> Path:
    """The file that a restorer's name means, found without loading torch: weights, or the source of a module.

    Raises:
        ConfigError: there is none, or the package that reads it is missing.
    """
    if name.startswith("python:"):
        return _source_of(name)
    if name.startswith("spandrel:"):
        path = Path(name.removeprefix("spandrel:")).expanduser()
        if importlib.util.find_spec("spandrel") is None:
            raise ConfigError(f"restorer {name}: spandrel is not installed; pip install 'idm-curate[spandrel]'")
        if not path.is_file():
            raise ConfigError(f"restorer {name}: there is no weights file at {path}")
        return path
    spec = importlib.util.find_spec("idm_core")  # finds the package and does not run it: it would import torch
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "weights"
    path = Path(name) if name.endswith(".safetensors") else folder / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors")))
        raise ConfigError(
            f"restorer {name}: no checkpoint at {path}; shipped ones: {names}. "
            "Or give the path of a .safetensors file, spandrel:FILE, or python:module:Class"
        )
    return path


def digest(name: str) -> str:
    """SHA-256 of what a restorer is: its file; with a class' own ``sha256``, of both in hex with a space between.

    Raises:
        ConfigError: as ``file_of``; or the module of a class cannot be imported.
    """
    with file_of(name).open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    own = getattr(_class_of(name), "sha256", None) if name.startswith("python:") else None
    return found if own is None else hashlib.sha256(f"{found} {own}".encode()).hexdigest()


def open_restorer(name: str, device: str = "cpu", *, severity: str | None = None) -> Restorer:
    """Load a restorer.

    Args:
        name: ``idm-64`` or another that ships; the path of a ``.safetensors`` checkpoint of IDM; ``spandrel:FILE``;
            ``python:module:Class``.
        device: cpu or cuda.
        severity: the checkpoint of IDM that reads the severity where the restorer does not; ``SEVERITY`` when None.

    Raises:
        ConfigError: there is no such restorer, or it cannot be loaded.
    """
    if reads_severity(name):
        return _idm(name, device)
    from pipelines.restorers.by_severity import BySeverity

    sha256 = digest(name)
    return BySeverity(_model(name, device), sha256, _idm(severity or SEVERITY, device))


def _idm(name: str, device: str) -> IDM:
    from idm_core import CheckpointError, load_restorer

    try:
        return load_restorer(file_of(name) if name.endswith(".safetensors") else name, device)
    except CheckpointError as error:
        raise ConfigError(f"restorer {name}: {error}") from error


def _model(name: str, device: str) -> Model:
    if name.startswith("python:"):
        return _class_of(name)(device)
    from pipelines.restorers.spandrel_model import SpandrelModel

    return SpandrelModel(file_of(name), device)


def _source_of(name: str) -> Path:
    """The source file of the module that ``python:module:Class`` names; the module itself is not run."""
    module = _parts(name)[0]
    try:
        spec = importlib.util.find_spec(module)
    except ImportError as error:  # of a package above it
        raise ConfigError(f"restorer {name}: {error}") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"restorer {name}: there is no module {module} with a source file; install it, or put its folder on "
            "PYTHONPATH (on every node)"
        )
    return Path(spec.origin)


def _class_of(name: str) -> Callable[[str], Model]:
    module, class_ = _parts(name)
    try:
        found = getattr(importlib.import_module(module), class_, None)
    except ImportError as error:
        raise ConfigError(f"restorer {name}: {module} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"restorer {name}: {module} has no class {class_}")
    return cast("Callable[[str], Model]", found)


def _parts(name: str) -> tuple[str, str]:
    module, _, class_ = name.removeprefix("python:").partition(":")
    if not class_.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"restorer {name}: expected python:module:Class, for example python:my_models.gan:Mine")
    return module, class_
