"""What the gates see of changes that no restoration may make, and what passes them: where the thresholds come from.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.gates [--limit N] [--faces mobilefacenet] [--json FILE]

Truths are faces-sharp.zip at 128 pixels, each damaged once, by one of four recipes in turn. Honest are the restorer's
candidates that came nearer to their truth (LPIPS). In each of them changes are planted (planted.py). Each gate's
threshold is what 1 % of the honest ones of the validation split fail; false alarms and detections are counted on the
test split. The second part asks what the shipped policies let pass, over both splits, and over photographs of the
train split, which the restorer has seen, to come to a thousand. LPIPS is part of the restorer's training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from idm_core import Restorer, load_restorer
from idm_core.degradations import RECIPES
from idm_core.losses import Perceptual
from idm_core.restorer import Photograph
from manifests import schema
from pipelines import changes
from pipelines.faces import Face, FaceModel, open_faces
from pipelines.faces.face import Embedding, Points
from pipelines.measure import measure
from pipelines.restore import Instruments, measure_candidate
from pipelines.select import QUANTITIES, Gate, Policy, judge, load_policy
from pipelines.shares import share_of
from pipelines.weights import weights_folder
from tests.benchmarks.figures import plain
from tests.benchmarks.held_out import PhotoSet, Truth, damaged, truths
from tests.benchmarks.planted import PLANTED, bad_restorer

SIDE: Final = 128
FACES: Final = PhotoSet("faces-sharp.zip", 1)
DAMAGE: Final = ("light", "mild", "heavy", "partial")
FALSE_ALARMS: Final = 0.01
#: Faces of the second part; those that are missing from the held-out splits are taken from the train split.
WANTED: Final = 1_000
HONEST: Final = "honest"
BAD: Final = "blur, then sharpen"
KINDS: Final = (HONEST, *PLANTED, BAD)
HELD_OUT: Final = ("validation", "test")
#: The gates that thresholds are found for, and the side on which a candidate fails.
GATES: Final = {
    "identity_margin": "min", "faces_lost": "max", "landmark_error": "max", "redegradation": "min",
    "consistency": "min", "psnr_source": "min", "ssim_source": "min", "lpips_source": "max", "colour_drift": "max",
    "exposure_shift": "max", "saturation_shift": "max", "severity_drop": "min", "severity_after": "max",
    "sharpness_gain": "min", "noise_rise": "max", "blockiness_rise": "max",
}  # fmt: skip
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A candidate for a damaged photograph: a row of the benchmark.

    Attributes:
        kind: ``HONEST``, ``BAD``, or what was planted.
        nearer: whether the candidate is nearer to the truth than its source was, in LPIPS.
    """

    kind: str
    truth: Truth
    recipe: str
    source: Photograph
    candidate: Photograph
    severity: float
    nearer: bool


class Remembering:
    """A face model that detects in each image once: eight candidates share a source."""

    def __init__(self, model: FaceModel) -> None:
        self.name, self.same_person = model.name, model.same_person
        self._model, self._found = model, dict[bytes, list[Face]]()

    def detect(self, image: Photograph) -> list[Face]:
        key = hashlib.sha256(image.tobytes()).digest()
        if key not in self._found:
            self._found[key] = self._model.detect(image)
        return self._found[key]

    def embed(self, image: Photograph, landmarks: Points) -> Embedding:
        return self._model.embed(image, landmarks)


def damaged_in_turn(truth: Sequence[Truth]) -> Iterator[tuple[Truth, str, Photograph]]:
    """Each truth with the recipe that it is damaged by and what it then is."""
    for i, recipe in enumerate(DAMAGE):
        some = list(truth[i :: len(DAMAGE)])
        for t, source in zip(some, damaged(some, RECIPES[recipe]) if some else [], strict=True):
            yield t, recipe, source


def restored(restorer: Restorer, truth: Sequence[Truth], perceptual: Perceptual) -> list[Case]:
    """The candidates that the restorer makes as it ships; none where it left a photograph alone."""
    planned = list(damaged_in_turn(truth))
    results = restorer.restore([y for *_, y in planned], [f"{recipe} {t.key}" for t, recipe, _ in planned])
    return [
        Case(HONEST, t, recipe, y, r.image, r.severity, _nearer(t, y, r.image, perceptual))
        for (t, recipe, y), r in zip(planned, results, strict=True)
        if not np.array_equal(y, r.image)
    ]


def planted(cases: Sequence[Case], perceptual: Perceptual) -> list[Case]:
    """Every honest case with every planted change, and the bad restorer's candidate for the same source."""
    honest = [case for case in cases if case.nearer]
    faces = [case for case in honest if case.truth.landmarks is not None]
    found = []
    for name, plant in PLANTED.items():
        for i, case in enumerate(faces):
            other = faces[(i + len(faces) // 2) % len(faces)].truth
            found.append(_case(name, case, plant(case.candidate, case.truth, other), perceptual))
    return found + [_case(BAD, case, bad_restorer(case.source), perceptual) for case in cases]


def _case(kind: str, case: Case, candidate: Photograph, perceptual: Perceptual) -> Case:
    nearer = _nearer(case.truth, case.source, candidate, perceptual)
    return Case(kind, case.truth, case.recipe, case.source, candidate, case.severity, nearer)


def _nearer(truth: Truth, source: Photograph, candidate: Photograph, perceptual: Perceptual) -> bool:
    before, after = (changes.lpips(image, truth.image, perceptual) for image in (source, candidate))
    assert before is not None and after is not None
    return after < before


def manifests_of(cases: Sequence[Case], restorer: Restorer, instruments: Instruments) -> tuple[pa.Table, pa.Table]:
    """The rows of ``schema.SOURCE`` and ``schema.RESTORED`` that a run would have written of these candidates."""
    severities = restorer.severity([case.candidate for case in cases])
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    for i, (case, severity) in enumerate(zip(cases, severities, strict=True)):
        row: dict[str, Any] = {
            "key": f"{i:06d}",
            "shard": "gates-000000",
            "source_name": case.truth.name,
            "status": "restored",
        }
        before.append(row | {"status": "kept_original", **measure(case.source)})
        found = measure_candidate(case.candidate, case.source, instruments)
        after.append(row | {"severity": case.severity, "severity_after": severity} | found)
    return schema.table_from_rows(before, schema.SOURCE), schema.table_from_rows(after, schema.RESTORED)


def quantities(before: pa.Table, after: pa.Table) -> dict[str, Values]:
    """The quantity of every gate, NaN where it could not be measured."""

    def column(name: str) -> Values:
        table = after if name in after.column_names else before
        return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)

    return {name: QUANTITIES[name][1](*map(column, QUANTITIES[name][0])) for name in GATES}


def threshold(values: Values, side: str) -> float:
    """The value beyond which ``FALSE_ALARMS`` of the known ones lie."""
    known = values[~np.isnan(values)]
    return float(np.quantile(known, FALSE_ALARMS if side == "min" else 1 - FALSE_ALARMS, method="nearest"))


def share(failed: Sequence[bool] | npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A share with its 95 % interval."""
    found = share_of(int(np.sum(failed)), len(failed))
    return {"share": found.share, "low": found.low, "high": found.high, "n": found.of}


class Bench:
    """Damaged faces of some splits, the candidates for them, and their rows of the manifests."""

    def __init__(self, restorer: Restorer, instruments: Instruments) -> None:
        self.restorer, self.instruments = restorer, instruments
        self.truths: dict[str, list[Truth]] = {}
        self.cases: dict[str, list[Case]] = {}
        self.tables: dict[str, tuple[pa.Table, pa.Table]] = {}

    def add(self, split: str, truth: list[Truth], *, plant: bool) -> None:
        """Restore a split's faces, and plant changes where that is asked for."""
        perceptual = self.instruments.perceptual
        assert perceptual is not None
        made = restored(self.restorer, truth, perceptual)
        self.truths[split] = truth
        self.cases[split] = made + (planted(made, perceptual) if plant else [])
        self.tables[split] = manifests_of(self.cases[split], self.restorer, self.instruments)

    def where(self, split: str, kind: str) -> Any:
        """Which cases of a split are of a kind; honest ones only if they came nearer to the truth."""
        return np.array([c.kind == kind and (c.nearer or kind != HONEST) for c in self.cases[split]])

    def verdicts(self, policy: Policy, splits: Sequence[str]) -> list[tuple[Case, str | None]]:
        """Every case with the gate that refuses it, or None."""
        found = []
        for split in splits:
            gates = [gate for gate, _ in judge(*self.tables[split], policy)]
            found += list(zip(self.cases[split], gates, strict=True))
        return found


def detections(bench: Bench, policies: Sequence[Policy]) -> dict[str, Any]:
    """A row for each gate, at the threshold that the validation split gives, then one for each policy: test split."""
    found = {split: quantities(*bench.tables[split]) for split in ("validation", "test")}
    rows: dict[str, Any] = {}
    for gate, side in GATES.items():
        bound = threshold(found["validation"][gate][bench.where("validation", HONEST)], side)
        failed = Gate(quantity=gate, **{side: bound}).margin(found["test"][gate]) < 0
        rows[gate] = {kind: share(failed[bench.where("test", kind)]) for kind in KINDS}
        rows[gate] |= {"threshold": f"{side} {bound:.3g}", "bound": bound}
    for policy in policies:
        failed = np.array([gate is not None for _, gate in bench.verdicts(policy, ["test"])])
        rows[f"policy `{policy.name}`"] = {kind: share(failed[bench.where("test", kind)]) for kind in KINDS}
    return rows


def passed(bench: Bench, policy: Policy, splits: Sequence[str]) -> dict[str, Any]:
    """What becomes of damaged faces under a policy, and of the bad restorer's candidates for them."""
    verdicts = bench.verdicts(policy, splits)
    accepted = [case for case, gate in verdicts if case.kind == HONEST and gate is None]
    refused = [gate is not None for case, gate in verdicts if case.kind == BAD]
    return {
        "damaged": sum(len(bench.truths[split]) for split in splits),
        "candidates": sum(case.kind == HONEST for case, _ in verdicts),
        "accepted": len(accepted),
        "nearer": share([case.nearer for case in accepted]),
        "bad ones refused": share(refused),
    }


def changed_undamaged(bench: Bench, policy: Policy) -> dict[str, Any]:
    """How many of the truths themselves are changed."""
    clean = [truth for some in bench.truths.values() for truth in some]
    results = bench.restorer.restore([t.image for t in clean], [f"clean {t.key}" for t in clean])
    touched = [
        Case(HONEST, t, "clean", t.image, r.image, r.severity, nearer=False)
        for t, r in zip(clean, results, strict=True)
        if not np.array_equal(r.image, t.image)
    ]
    accepted = 0
    if touched:
        tables = manifests_of(touched, bench.restorer, bench.instruments)
        accepted = sum(gate is None for gate, _ in judge(*tables, policy))
    return share(np.arange(len(clean)) < accepted) | {"candidates": len(touched)}


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--restorer", "name", default="idm-64", help="A shipped restorer's name, or a checkpoint.")
@click.option("--faces", "choice", default="auto", help="The face model.")
@click.option("--limit", default=0, help="Photographs of each split; 0 is all.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
def main(name: str, choice: str, limit: int, json_path: Path | None) -> None:
    """Print the gates' table, then what the policies let pass."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = open_faces(choice, weights_folder())
    if model is None:
        raise click.UsageError("planted faces need a face model; `idm-curate doctor` says what is missing")
    restorer = load_restorer(name)
    bench = Bench(restorer, Instruments(perceptual=changes.open_perceptual(), faces=Remembering(model)))
    policies = [load_policy(policy) for policy in ("default", "strict")]
    report: dict[str, Any] = {"restorer": name, "sha256": restorer.model_sha256, "faces": model.name, "limit": limit}

    for split in HELD_OUT:
        bench.add(split, truths(FACES, split, limit, side=SIDE, faces=model), plant=True)
    report["honest"] = {split: int(bench.where(split, HONEST).sum()) for split in HELD_OUT}
    report["gates"] = plain(detections(bench, policies))
    click.echo(f"{model.name}; honest candidates: {report['honest']}\n\n{gate_table(report['gates'])}\n", nl=False)

    missing = max(0, WANTED - sum(map(len, bench.truths.values())))
    bench.add("train", truths(FACES, "train", limit or missing, side=SIDE), plant=False)
    report["passed"] = {}
    for policy in policies:
        for title, splits in (("held out", HELD_OUT), ("seen in training", ("train",))):
            report["passed"][f"{policy.name}, {title}"] = plain(passed(bench, policy, splits))
    click.echo(f"\n{passed_table(report['passed'])}")
    report["undamaged"] = plain(changed_undamaged(bench, policies[0]))
    click.echo(f"\nundamaged, and changed under the default policy: {told(report['undamaged'])}")
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def gate_table(rows: dict[str, Any]) -> str:
    """Threshold, false alarms, and the share that is found of each planted change, in percent."""
    head = ["gate", "threshold", "false alarms", *KINDS[1:]]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, row in rows.items():
        shares = [f"{100 * row[kind]['share']:.1f}" for kind in KINDS]
        lines.append(" | ".join([name, row.get("threshold", ""), *shares]))
    return "\n".join(f"| {line} |" for line in lines)


def passed_table(rows: dict[str, Any]) -> str:
    """The second part, in Markdown."""
    head = ["policy, faces", "damaged", "candidates", "accepted", "nearer to the truth", "bad ones refused"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, row in rows.items():
        lines.append(" | ".join([name, *(told(row[column]) for column in head[1:4])]))
        lines[-1] += f" | {told(row['nearer'])} | {told(row['bad ones refused'])}"
    return "\n".join(f"| {line} |" for line in lines)


def told(value: int | dict[str, Any]) -> str:
    """A number, or a share with its interval."""
    if not isinstance(value, dict):
        return str(value)
    if not value["n"]:
        return ""
    return f"{100 * value['share']:.1f} % ({100 * value['low']:.1f}-{100 * value['high']:.1f}) of {value['n']}"


if __name__ == "__main__":
    main()
