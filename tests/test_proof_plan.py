"""What a proof compares: declared before anything is trained, kept to, and told by a dry run that touches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import skimage
import yaml
from pydantic import ValidationError

from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS
from manifests import rundir, storage
from manifests.errors import ConfigError, RunError
from manifests.rundir import Run
from pipelines import config as configuration
from pipelines import run as runs
from pipelines.proof import plan, training
from pipelines.proof.plan import External, Proof
from tests.command_line import curate
from tests.tiny_generators import DDM, GAN

EXTERNAL = {"train": ["python", "{data}"], "resolution": 32}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return rundir.create_or_open(str(tmp_path / "run"), "run", {})


def test_all_arms_of_a_pair_come_before_the_next_and_differ_in_their_arm_alone() -> None:
    proof = Proof(arms=("original", "null", "weighted"), trainers=("ddm-32", "gan-32"), seeds=2, nimg={"gan-32": 500})
    found = list(plan.jobs(proof))
    assert [job.name for job in found[:5]] == [
        "original-ddm-32-s0", "null-ddm-32-s0", "weighted-ddm-32-s0", "original-gan-32-s0", "null-gan-32-s0",
    ]  # fmt: skip
    assert [job.pair for job in found] == [0] * 5 + [1] * 5
    for job in found:
        assert job.seed == (job.pair + 10_000 if job.arm == "null" else job.pair)
        assert job.nimg == (500 if job.trainer == "gan-32" else plan.DEFAULT_NIMG)
    assert {job.nimg for job in plan.jobs(Proof(nimg=7))} == {7}
    other = Proof(arms=("original", "weighted"), trainers=("mine",), external={"mine": EXTERNAL})  # type: ignore[dict-item]
    assert {job.arm for job in plan.jobs(other)} == {"original"}, "only a diffusion model of ours knows weights"


def test_the_readme_s_trainers_are_a_declaration() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(proof:\n.*?)```", readme, re.DOTALL)
    proof = Proof.model_validate(yaml.safe_load(block)["proof"])
    assert isinstance(proof.nimg, dict)
    assert proof.nimg.keys() == proof.external.keys() == set(proof.trainers) == {"stylegan3", "edm", "edm2"}
    assert proof.nimg["edm2"] % 2**23 == 0, "edm2 keeps its network at these alone"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"arms": ["cleaned"]}, "every gain is over `original`"),
        ({"arms": ["original", "original"]}, "one is named twice"),
        ({"arms": ["original", "polished"]}, "polished"),
        ({"trainers": []}, "there are none"),
        ({"trainers": ["a/b"]}, "'a/b' is no name"),
        ({"trainers": [".."]}, "is no name"),
        ({"nimg": {"ddm-64": 5}}, "nimg.ddm-64 is not among the trainers"),
        ({"nimg": 0}, "nimg"),
        ({"external": {"mine": EXTERNAL}}, "external.mine is not among the trainers"),
        ({"presets": {"mine": {"like": "ddm-64"}}}, "presets.mine is not among the trainers"),
        ({"trainers": ["x"], "presets": {"x": {}}, "external": {"x": EXTERNAL}}, "x is in presets and in external"),
        ({"trainers": ["mine"], "external": {"mine": {**EXTERNAL, "train": []}}}, "train"),
        ({"seed": 3}, "seed"),
    ],
)
def test_what_is_no_declaration_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Proof.model_validate(wrong)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"trainers": ("ddm-33",)}, "there are ddm-32, .*and those that proof.presets and proof.external name"),
        ({"workers": 3}, "3 processes cannot share ddm-32's 32 images"),
        ({"nimg": 100}, "ddm-32 learns from 32 images at once; 100 are too few for 4 snapshots"),
        (
            {"trainers": ("x",), "external": {"x": External(train=("no-such-program",), resolution=8)}},
            "no-such-program",
        ),
    ],
)
def test_trainers_that_cannot_work_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training.check_trainers(Proof(**wrong))


def test_it_is_declared_once_and_only_seeds_and_arms_may_grow(run: Run) -> None:
    with pytest.raises(RunError, match="idm-curate retrain"):
        plan.read(run)
    proof = Proof(seeds=3)
    plan.declare(run, proof)
    assert plan.read(run) == proof
    plan.declare(run, proof)
    for another in (Proof(seeds=2), Proof(seeds=3, samples=50), Proof(seeds=4, arms=("original", "cleaned"))):
        with pytest.raises(ConfigError, match=r"declared otherwise: (seeds|samples|arms)"):
            plan.declare(run, another)
    assert plan.read(run) == proof
    for more in ({"gan-32": 4, "ddm-32": 3}, {"gan-32": 5, "ddm-32": 3}, 5):
        plan.declare(run, Proof(seeds=more))
        assert plan.read(run) == Proof(seeds=more)
    plan.declare(run, more_arms := Proof(seeds=5, arms=("original", "weighted", *proof.arms[1:])))
    assert plan.read(run) == more_arms
    steps = plan.grown(run)
    assert [step["arms"] for step in steps] == [[], [], [], ["weighted"]]
    assert [step["seeds"] for step in steps] == [{"gan-32": 3}, {"gan-32": 4}, {"ddm-32": 3}, {}]
    storage.write_json(Proof(seeds=5).model_dump(mode="json"), run.url("jobs", "proof.json"))  # as if it was killed
    plan.declare(run, more_arms)
    assert plan.grown(run) == steps and plan.read(run) == more_arms
    with pytest.raises(ConfigError, match=r"declared otherwise: arms"):
        plan.declare(run, Proof(seeds=5))
    with pytest.raises(ConfigError, match=r"; seeds \(5 there"):
        plan.declare(run, Proof(seeds={"gan-32": 9, "ddm-32": 4}))
    storage.write_json({"seeds": "many"}, run.url("jobs", "proof.json"))
    with pytest.raises(RunError, match="seeds"):
        plan.read(run)


def test_who_names_nothing_goes_on_with_what_was_declared(run: Run) -> None:
    plan.declare(run, declared := Proof(arms=("original", "cleaned"), trainers=("ddm-32",), seeds=2))

    def resolved(**named: Any) -> Proof:
        config = configuration.Config.model_validate({"proof": named})
        return runs._resolve_proof(config.proof, ("retrain",), run.root)

    assert resolved() == declared
    assert resolved(seeds=4) == declared.model_copy(update={"seeds": 4})
    with pytest.raises(ConfigError, match="declared otherwise: arms"):
        plan.declare(run, resolved(arms=["original"]))
    with pytest.raises(ConfigError, match="not among the trainers"):
        resolved(nimg={"gan-32": 5})
    assert resolved(reference="refs/clean").reference == str(Path("refs/clean").absolute())
    assert resolved(reference="s3://refs/clean").reference == "s3://refs/clean"


def test_the_proof_is_no_part_of_what_a_runs_bytes_depend_on(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"proof": {"trainers": ["mine"], "external": {"mine": EXTERNAL}, "seeds": 2}}))
    config = configuration.load(file, ["proof.seeds=3"], {"proof.nimg": {"mine": 5}})
    assert (config.proof.seeds, config.proof.nimg_of("mine")) == (3, 5)
    assert config.proof.external["mine"].train == ("python", "{data}")
    assert configuration.load(None, ["proof.arms=[original, null]"], {}).proof.arms == ("original", "null")
    assert config.of_the_bytes() == configuration.Config().of_the_bytes()
    with pytest.raises(ConfigError, match=r"proof\.seeds"):
        configuration.load(None, ["proof.seeds=none"], {})


def test_the_disk_is_counted_for_what_comes_to_lie_on_it(
    curated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what a finished proof takes; and a disk that is too small is said before anything is written."""
    import shutil

    monkeypatch.setitem(DDM_PRESETS, DDM.name, DDM)
    monkeypatch.setitem(GAN_PRESETS, GAN.name, GAN)
    root = Path(shutil.copytree(curated_run, tmp_path / "run"))
    arguments = ["--arm", "original", "--trainer", DDM.name, "--trainer", GAN.name, "--seeds", 1, "--nimg", 64]
    arguments += ["--snapshots", 2, "--workers", 0, "--reference", Path(skimage.__file__).parent / "data"]
    monkeypatch.setattr(storage, "free_bytes", lambda url: 1000)
    assert "GB more, 1e-06 GB are free" in curate("retrain", root, *arguments, code=2)
    assert not (root / "jobs").exists()
    monkeypatch.undo()
    monkeypatch.setitem(DDM_PRESETS, DDM.name, DDM)
    monkeypatch.setitem(GAN_PRESETS, GAN.name, GAN)
    curate("retrain", root, *arguments)
    kept = [p for p in (root / "jobs").rglob("*") if p.suffix in (".npy", ".safetensors")]
    estimate = training.disk_bytes(plan.read(rundir.read(str(root))), rundir.read(str(root)).listing()["rows"])
    assert estimate == pytest.approx(sum(p.stat().st_size for p in kept), rel=0.15)


def test_what_others_write_is_not_taken_for_what_is_planned(
    curated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer of others may keep snapshots of many GB: they make no room for images."""
    import shutil

    run = rundir.read(str(shutil.copytree(curated_run, tmp_path / "run")))
    mine = External(train=("python",), resolution=32)
    proof = Proof(arms=("original",), trainers=("x",), external={"x": mine}, reference=str(tmp_path), view="default")
    folder = Path(run.root) / "jobs" / "original-x-s0" / "out"
    folder.mkdir(parents=True)
    with (folder / "network.pkl").open("wb") as f:
        f.truncate(10**9)
    monkeypatch.setattr("pipelines.proof.arms.check_arms", lambda *_: None)
    needed = training.disk_bytes(proof, run.listing()["rows"])
    monkeypatch.setattr(storage, "free_bytes", lambda url: needed - 1)
    with pytest.raises(ConfigError, match="GB more"):
        training.check(run, proof)
    images = Path(run.root) / "jobs" / "images"
    images.mkdir()
    (images / "original-32.npy").write_bytes(bytes(1000))
    training.check(run, proof)


def test_a_dry_run_tells_all_jobs_and_touches_nothing(curated_run: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in curated_run.rglob("*")}

    before = stamps()
    options = ["--arm", "original", "--arm", "null", "--seeds", "ddm-32=3", "--seeds", "gan-32=2"]
    options += ["--nimg", "ddm-32=5000", "--nimg", "gan-32=700"]
    said = curate("retrain", curated_run, *options, "-n")
    assert "ddm-32: 6 jobs, 0 done; 5,000 images each; arms original, null; 3 seeds" in said
    assert "gan-32: 4 jobs, 0 done; 700 images each; arms original, null; 2 seeds" in said and "GB in jobs/" in said
    assert stamps() == before
    for wrong, words in (
        (["--nimg", "many"], "expected one number, or TRAINER=N"),
        (["--seeds", "many"], "--seeds many: expected one number, or TRAINER=N"),
        (["--seeds", "0"], "proof.seeds"),
        (["--nimg", "ddm-32=5", "--nimg", "7"], "expected one number, or TRAINER=N"),
        (["--trainer", "ddm-99"], "ddm-99"),
        (["--arm", "cleaned"], "every gain is over `original`"),
        (["--workers", "3"], "cannot share"),
    ):
        assert words in curate("retrain", curated_run, *wrong, code=2)
    assert stamps() == before


def test_run_stops_before_the_training_unless_it_is_asked_for(
    curated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--until pack` is the default and ends with a report; `--until report` is all of it, in order."""
    done: list[str] = []

    def noted(stage: str) -> Any:
        return lambda *_: done.append(stage) or []

    monkeypatch.setattr(runs, "_STAGES", {stage: noted(stage) for stage in runs.STAGES})
    monkeypatch.setattr("manifests.status.describe", lambda run: ("", True))
    command = ["run", "--dataset", "folder", "--source", tmp_path, "--run", tmp_path / "run", "--workers", 0]
    curate(*command)
    assert done == ["ingest", "restore", "select", "pack", "report"]
    done.clear()
    curate(*command, "--until", "report", "--set", "proof.seeds=2")
    assert done == ["ingest", "restore", "select", "pack", "retrain", "evaluate", "report"]
    done.clear()
    curate("evaluate", tmp_path / "run")
    assert done == ["evaluate"]
    assert "no run directory" in curate("evaluate", tmp_path, code=2)
    assert "ddm-99" in curate(*command, "--until", "report", "--set", "proof.trainers=[ddm-99]", code=2)


def test_help_of_the_command_line_loads_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import cli; "
        "print(CliRunner().invoke(cli, ['retrain', '--help']).exit_code, "
        "sorted({'torch', 'ray', 'pydantic', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"
