"""Does cleaning a data set make generators that are trained on it better? With truth, controls and paired seeds.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.proof prepare --out FOLDER --study NAME
    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.proof train   --out FOLDER --study NAME [--workers 0]
    python -m tests.benchmarks.proof results --out FOLDER --study NAME
    python -m tests.benchmarks.proof table

Photographs brought down to 32 pixels are near enough to pristine. Some are the training set, a share of them damaged
with recorded seeds; the last ones are the reference. The restorer sees no truth: it is trained on other photographs, or
on the damaged set alone, by rounds. All of it is the product's own: ``run``, ``train-idm``, ``retrain``, ``evaluate``,
``report``; here are the data and the declarations. It takes hours, and may be killed and given again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from idm_core.degradations import RECIPES, degrade
from idm_core.presets import PRESETS
from idm_core.restorer import to_images, to_tensor
from idm_core.training import TrainConfig
from manifests import rundir
from pipelines import config as configuration
from pipelines.proof.metrics import append_metrics, read_metrics
from pipelines.report_proof import proof_figures
from pipelines.rounds import Rounds, train_rounds
from pipelines.run import Outcome, execute, opened, resolve
from pipelines.train_idm import train_idm
from tests.benchmarks.figures import plain
from tests.benchmarks.proof_plots import draw_curves, draw_samples
from tests.benchmarks.proof_table import table_of

SIDE: Final = 32
#: The last images of every archive.
HELD_OUT: Final = 2_000
SEED: Final = 31_000  # no training seed
CONFIG: Final = TrainConfig(PRESETS["small-32"], 120_000, perceptual_after=60_000, self_after=20_000)
ROUNDS: Final = Rounds(nimg=20_000)
RESTORERS: Final = ("disjoint", "extrinsic")
#: Their jobs are the same for all restorers of a study.
WITHOUT_RESTORER: Final = ("original", "null", "placebo", "pristine")
Pixels = npt.NDArray[np.uint8]  # H W 3
#: Kinds of things, by where WordNet's numbers of the next kind begin.
KINDS: Final = {"n026": "animal", "n05": "artifact", "n~": "food-or-nature"}
RESULTS: Final = Path(__file__).parent / "results"


def kind_of(wnid: str) -> str:
    """What a class of ImageNet is, by WordNet's number, n and eight digits: they stand in the order of its files.

    Forty photographs of each of 200 classes are too few to learn one from; of these kinds there are thousands.
    """
    return next(kind for last, kind in KINDS.items() if wnid < last)


@dataclass(frozen=True, slots=True)
class Study:
    """A set whose truth is known, what is done to it, and what is trained on it.

    Attributes:
        archive, others: of the photographs, and of those that the disjoint restorer learns from.
        images: of the training set.
        damaged: share of them that is damaged, ...
        recipes: ... as many by each of these.
        declared: of the proof.
        classes: which class the images of a folder are of, by its name; the generators are told. None: of none.
        like: the study that has the same images, and whose restorers are this one's.
    """

    archive: str
    others: str
    images: int
    damaged: float
    recipes: tuple[str, ...]
    declared: Mapping[str, Any]
    classes: Callable[[str], str] | None = None
    like: str | None = None


_FACES: Final = ("faces-wild.zip", "faces-sharp.zip")
_ALL: Final = {
    "arms": ["original", "cleaned", "combined", "filter", "weighted", "placebo", "null", "pristine"],
    "trainers": ["ddm-32", "gan-32"], "nimg": {"ddm-32": 150_000, "gan-32": 100_000},
}  # fmt: skip
#: In small steps, so that a short training gets far, and there is time for more pairs.
_TEN_PAIRS: Final = {
    "arms": ["original", "combined", "filter", "pristine", "null"],
    "trainers": ["gan-32-quick"], "nimg": 24_000, "seeds": 10,
}  # fmt: skip
_TWO_WAYS: Final = {
    "arms": ["original", "combined", "filter", "pristine"], "trainers": ["gan-32"], "nimg": 60_000,
}  # fmt: skip
_WEIGHTED: Final = {
    "arms": ["original", "combined", "filter", "weighted", "pristine", "null"],
    "trainers": ["ddm-32-quick"], "nimg": 60_000, "seeds": 4,
}  # fmt: skip
_CLASSES: Final = {
    "arms": ["original", "combined", "filter", "weighted", "pristine"],
    "trainers": ["ddm-32"], "nimg": 100_000, "snapshots": 1, "classes": True,
}  # fmt: skip
#: Of the 200 classes, forty images of each, the model learnt too little for damage to matter.
_KINDS: Final = {
    "arms": ["original", "cleaned", "combined", "filter", "weighted", "pristine", "null"],
    "trainers": ["ddm-32-quick"], "nimg": 60_000, "snapshots": 1, "classes": True, "seeds": 7,
}  # fmt: skip
_TINY: Final = ("tiny-imagenet.zip", "imagenet-sample.zip")
STUDIES: Final = {
    "faces": Study(*_FACES, 8_000, 0.4, ("mild", "heavy"), _ALL),
    "faces-gan": Study(*_FACES, 8_000, 0.4, ("mild", "heavy"), _TEN_PAIRS, like="faces"),
    "faces-weighted": Study(*_FACES, 8_000, 0.4, ("mild", "heavy"), _WEIGHTED, like="faces"),
    # By the distances of the sets themselves dropping is better above, and restoring here.
    "few-mild-80": Study(*_FACES, 1_000, 0.8, ("mild",), _TWO_WAYS),
    "tiny-imagenet": Study(*_TINY, 8_000, 0.4, ("mild", "heavy"), _CLASSES, str),
    "tiny-kinds": Study(*_TINY, 8_000, 0.8, ("heavy",), _KINDS, kind_of),
}


def write_images(study: Study, out: Path) -> None:
    """``raw/``, with damage planted; ``truth/``, the same without; ``held-out/``; and ``damage.json``."""
    if (out / "damage.json").exists():
        return
    done = {}
    for number, (name, truth) in enumerate(read_images(study)):
        key = Path(name).name.replace(".", "_")
        # A class is the folder above the archive's own folder of images.
        path = study.classes(Path(name).parts[-3]) if study.classes else "", f"{key}.png"
        held_out = number >= study.images
        _write(out.joinpath("held-out" if held_out else "truth", *path), truth)
        if held_out:
            continue
        image = truth
        draw = np.random.default_rng(list(hashlib.sha256(f"{SEED} {key}".encode()).digest()))
        if draw.random() < study.damaged:
            recipe = RECIPES[study.recipes[-1 - int(draw.random() * len(study.recipes))]]
            tensor, (damage,) = degrade(to_tensor([truth]), recipe, [key], SEED)
            (image,), done[key] = to_images(tensor), asdict(damage)
        _write(out.joinpath("raw", *path), image)
    (out / "damage.json").write_text(json.dumps({"seed": SEED, "damage": done}, indent=1))


def read_images(study: Study) -> Iterator[tuple[str, Pixels]]:
    """Names and pixels: the training set, then the held-out images."""
    with zipfile.ZipFile(Path(os.environ["IDM_DATA"]) / study.archive) as members:
        names = [n for n in members.namelist() if n.lower().endswith((".jpg", ".jpeg"))]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        assert len(names) >= study.images + HELD_OUT
        for name in (*names[: study.images], *names[-HELD_OUT:]):
            yield name, _reduced(members.read(name))


def _reduced(data: bytes) -> Pixels:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _write(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def images_of(out: Path, name: str) -> Path:
    """The folder of a study's images."""
    return out / (STUDIES[name].like or name)


def restorer_of(out: Path, name: str, restorer: str) -> Path:
    """The folder of a restorer: studies of the same photographs share the disjoint one."""
    of = Path(STUDIES[name].others).stem if restorer == "disjoint" else images_of(out, name).name
    return out / "restorers" / f"{restorer}-{of}"


def declaration(out: Path, name: str, restorer: str) -> dict[str, Any]:
    """What is proved of a study with a restorer: of the second one, with what is asked of it alone."""
    declared: dict[str, Any] = {"seeds": 3, "snapshots": 2, "samples": 2_000, "detectors": ["effnet-96"]}
    declared |= STUDIES[name].declared
    if restorer == "extrinsic":
        declared["arms"] = [arm for arm in declared["arms"] if arm in (*WITHOUT_RESTORER, "combined", "filter")]
    return declared | {"reference": str(images_of(out, name) / "held-out")}


def run_of(out: Path, name: str, restorer: str) -> Path:
    """The run directory of a study and restorer."""
    return out / "runs" / f"{name}-{restorer}"


def curated(out: Path, name: str, restorer: str, stages: tuple[str, ...], **resources: Any) -> Outcome:
    """The run of a study and restorer, as far as these stages."""
    images = images_of(out, name)
    config = configuration.load(None, (), {
        "dataset.name": "folder", "dataset.source": str(images / "raw"), "dataset.truth": str(images / "truth"),
        "restore.restorer": str(restorer_of(out, name, restorer) / f"{CONFIG.preset.name}.safetensors"),
        "faces.model": "off", "proof": declaration(out, name, restorer),
        "resources": {"workers": 0} | resources,
    })  # fmt: skip
    root = str(run_of(out, name, restorer))
    config = resolve(config, stages, root)
    with opened(root, name, config) as run:
        for other in RESTORERS:
            if "retrain" in stages and other != restorer and (source := run_of(out, name, other)).exists():
                take_over(rundir.read(str(source)), run)
        return execute(run, config, stages)


def take_over(source: rundir.Run, run: rundir.Run) -> None:
    """What the run of another restorer has trained and measured of the arms that no restorer has touched.

    A job knows its images and options by their fingerprints, and so does a figure: ``retrain`` refuses a job that is
    another, and ``evaluate`` measures again. For who holds the lock of ``run``.
    """
    for marker in sorted(Path(source.root).glob("jobs/*/done.json")):
        job = Path(run.root) / "jobs" / marker.parent.name
        if job.name.startswith(WITHOUT_RESTORER) and not job.exists():
            half = job.with_name(f".{job.name}")
            shutil.copytree(marker.parent, half, dirs_exist_ok=True)
            half.rename(job)
    there = {line["fingerprint"] for line in read_metrics(run)}
    append_metrics(run, [
        line for line in read_metrics(source)
        if line["arm"] in WITHOUT_RESTORER and line["reference"] != "cleaned" and line["fingerprint"] not in there
    ])  # fmt: skip


@click.group(help=(__doc__ or "").split("\n")[0])
def main() -> None:
    """Commands."""


_OUT = click.option("--out", type=click.Path(path_type=Path), required=True)
_STUDY = click.option("--study", type=click.Choice(list(STUDIES)), default="faces", show_default=True)
_RESTORER = click.option("--restorer", type=click.Choice(RESTORERS), default="disjoint", show_default=True)


@main.command("prepare")
@_OUT
@_STUDY
@_RESTORER
def prepare(out: Path, study: str, restorer: str) -> None:
    """Data, the restorer, and the set cleaned by it."""
    torch.set_num_threads(1)
    images = images_of(out, study)
    write_images(STUDIES[study], images)
    trunk = Path(os.environ["IDM_WEIGHTS"]) / "alexnet_features.safetensors"
    folder = restorer_of(out, study, restorer)
    if restorer == "disjoint":
        train_idm([str(Path(os.environ["IDM_DATA"]) / STUDIES[study].others)], folder, CONFIG, lpips_trunk=trunk)
    else:
        train_rounds(str(images / "raw"), folder, CONFIG, ROUNDS, lpips_trunk=trunk)
    curated(out, study, restorer, ("ingest", "restore", "select", "pack"))


@main.command("train")
@_OUT
@_STUDY
@_RESTORER
@click.option("--workers", type=int, help="0: one job after the other, here; else on Ray, side by side.")
def train(out: Path, study: str, restorer: str, workers: int | None) -> None:
    """Train, measure and report; what is there already is not done again."""
    outcome = curated(out, study, restorer, ("retrain", "evaluate", "report"), workers=workers)
    for failure in outcome.failures:
        click.echo(failure, err=True)
    if outcome.failures:
        raise SystemExit(1)


@main.command("results")
@_OUT
@_STUDY
@_RESTORER
def results(out: Path, study: str, restorer: str) -> None:
    """Write down the figures that are there, with a plot and a sheet of samples, beside this benchmark."""
    run = rundir.read(str(run_of(out, study, restorer)))
    found = proof_figures(run)
    if found is None:
        raise click.ClickException(f"{run.root}: nothing is declared yet")
    held_out = str(images_of(out, study) / "held-out")
    named = json.loads(json.dumps(plain(found)).replace(json.dumps(held_out)[1:-1], "held-out, pristine"))
    path = RESULTS / f"proof-{study}-{restorer}.json"
    path.write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
    draw_curves(found, path.with_suffix(".svg"))
    draw_samples(run, found, path.with_suffix(".png"))
    click.echo(f"{path}: {found['scored']} of {found['jobs']} jobs")


@main.command("table")
def table() -> None:
    """Print the figures that are beside this benchmark, and write them to ``results/proof.md``."""
    parts = ["# Does cleaning make better generators?", (__doc__ or "").split("\n\n", 2)[2].strip()]
    for path in sorted(RESULTS.glob("proof-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        title = f"## {path.stem.removeprefix('proof-')}: {found['scored']} of {found['jobs']} jobs"
        parts += [
            title,
            table_of(found),
            *found.get("grown", ()),
            *found["said"],
            *found["over_filter"]["said"],
            *filter(None, [found["balance"], found.get("note")]),
        ]
    text = "\n\n".join(parts) + "\n"
    (RESULTS / "proof.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
