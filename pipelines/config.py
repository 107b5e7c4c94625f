"""The configuration of a run: one frozen model a stage, read from YAML, overridden by ``--set``, saved whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from manifests.errors import ConfigError
from pipelines.proof.plan import Proof

#: From so many samples on, a share of failed ones says something: a handful of bad files is a fact about a dataset, a
#: shard of them is a broken decoder or a broken disk.
FEW = 8

DatasetName = Literal["sample", "ffhq", "imagenet", "folder", "webdataset"]

#: Samples per shard where the user names no number: about a gigabyte of FFHQ, a tenth of one of ImageNet.
SHARD_SIZE: dict[str, int] = {"sample": 64, "ffhq": 500, "imagenet": 1000, "folder": 1000, "webdataset": 1000}


class DatasetConfig(BaseModel, frozen=True, extra="forbid"):
    """What is read. ``source`` and ``truth`` are local paths or fsspec URLs."""

    name: DatasetName = "sample"
    source: str | None = None
    truth: str | None = Field(default=None, description="pristine images under the same names, where known")
    limit: int | None = Field(default=None, ge=1, description="only the first N samples, in the order of their names")
    shard_size: int | None = Field(default=None, ge=1, le=100_000, description="samples per shard")


class IngestConfig(BaseModel, frozen=True, extra="forbid"):
    """How raw images become source shards."""

    max_failed: float = Field(default=0.5, ge=0, le=1, description="a larger share of failed samples fails the shard")
    # An image of N pixels takes about 8 N bytes while it is decoded: a worker stays under a gigabyte.
    max_pixels: int = Field(default=100_000_000, ge=64, description="larger images fail as too_large")
    duplicate_distance: int = Field(default=26, ge=0, le=64, description="Hamming distance of near duplicates, of 256")

    align: Literal["ffhq"] | None = Field(default=None, description="cut every face out of its photograph, like FFHQ's")
    align_size: int = Field(default=1024, ge=16, le=4096, description="side of a face that was cut out, px")
    align_min_side: int = Field(default=64, ge=1, description="smaller squares of a face are not cut out, px")


class FacesConfig(BaseModel, frozen=True, extra="forbid"):
    """Which face model looks; ``auto`` becomes a name, or off, when a run is made."""

    model: Literal["auto", "facexlib", "mobilefacenet", "dlib", "off"] = "auto"

    @field_validator("model", mode="before")
    @classmethod
    def _off(cls, model: object) -> object:
        return "off" if model is False else model  # YAML reads a bare off as false


class EvidenceConfig(BaseModel, frozen=True, extra="forbid"):
    """Which further instruments measure a candidate; ``auto`` becomes true or false when a run is made."""

    lpips: bool | Literal["auto"] = Field(default="auto", description="LPIPS, if its file is in the weights folder")
    niqe: bool | Literal["auto"] = Field(default="auto", description="NIQE, if its file is in the weights folder")


class RestoreConfig(BaseModel, frozen=True, extra="forbid"):
    """Which restorer looks at every sample. None: what its checkpoint was calibrated for."""

    restorer: str = Field(
        default="idm-64", description="a shipped model, the path of a checkpoint, spandrel:FILE or python:module:Class"
    )
    sha256: str | None = Field(default=None, description="of its file; filled in when the run is made")
    severity: str | None = Field(default=None, description="whose severity decides, where the restorer is not IDM")
    severity_sha256: str | None = Field(default=None, description="of that checkpoint; filled in when the run is made")
    threshold: float | None = Field(default=None, ge=0, le=1, description="a sample of lower severity is not run")
    steps: int | None = Field(default=None, ge=1, description="evaluations of a pass; IDM's alone")
    passes: int | None = Field(default=None, ge=1)
    identity: float | None = Field(
        default=None, lt=1, description="a pass of IDM that leaves less identity_margin is undone; none: gates judge"
    )
    max_failed: float = Field(default=0.1, ge=0, le=1)


class Resources(BaseModel, frozen=True, extra="forbid"):
    """Where the work is done. Nothing here changes a byte of the result, so nothing of it enters the fingerprint."""

    workers: int | None = Field(default=None, ge=0, description="actors; 0: in this process, without Ray")
    gpus_per_worker: float | None = Field(default=None, ge=0)
    cpus_per_worker: float = Field(default=1, gt=0)
    address: str | None = Field(default=None, description="a running Ray cluster; none: one on this machine")
    jobs_at_once: int | None = Field(default=None, ge=1, description="trainings; none: as many as there is room for")


class Config(BaseModel, frozen=True, extra="forbid"):
    """Everything that can be set in the YAML file and with ``--set section.key=value``."""

    dataset: DatasetConfig = DatasetConfig()
    ingest: IngestConfig = IngestConfig()
    faces: FacesConfig = FacesConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    restore: RestoreConfig = RestoreConfig()
    policy: str = "default"
    validation: float | None = Field(default=None, ge=0, lt=1, description="share held out; none: as the policy says")
    view: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="what is packed; none: what the policy decided"
    )
    proof: Proof = Proof()
    resources: Resources = Resources()

    def of_the_bytes(self) -> dict[str, Any]:
        """The part that the bytes of the result depend on: what ``run.json`` keeps and the fingerprint covers."""
        dump: dict[str, Any] = self.model_dump(
            mode="json", exclude={"resources", "policy", "validation", "view", "proof"}
        )
        if dump["dataset"]["shard_size"] is None:
            dump["dataset"]["shard_size"] = SHARD_SIZE[self.dataset.name]
        return dump


def load(path: Path | None, overrides: Sequence[str], options: Mapping[str, Any]) -> Config:
    """Merge, later wins: the YAML file, ``section.key=value`` overrides, and the command's own options (dotted keys).

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; the message names it.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {path}: {error}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"--config {path}: expected a mapping at the top, found {type(loaded).__name__}")
        merged = loaded
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item}: expected key=value, for example --set restore.threshold=0.2")
        try:
            _assign(merged, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item}: the value is no YAML ({error})") from error
    for key, value in options.items():
        if value is not None:
            _assign(merged, key, value)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ConfigError("configuration: " + "; ".join(problems)) from error


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {section} is a value, not a section")
        tree = child
    tree[leaf] = value
