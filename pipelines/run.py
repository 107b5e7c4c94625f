"""The whole path, stage by stage: what is to do, what it needs, and doing it. The same call again continues."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manifests import attempts, rundir, shards, status, storage
from manifests.errors import ConfigError, CurateError
from manifests.rundir import Run
from pipelines import datasets, ingest, pack, progress, restore, restorers, select, workers
from pipelines.config import Config, EvidenceConfig, FacesConfig, Resources, RestoreConfig
from pipelines.datasets import sample
from pipelines.proof import plan as proofs
from pipelines.proof.plan import Proof
from pipelines.stages import STAGES

log = logging.getLogger("idm_curate")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call did. ``failures`` are paths of files that each say why a shard was given up, or a job failed, of the
    stage that could not be completed."""

    root: str
    failures: tuple[str, ...]
    stage: str | None = None


def resolve(config: Config, stages: Sequence[str], root: str) -> Config:
    """Fill in what the user left open and check what can be checked before anything is written.

    What a run that is there already has settled stays: ``auto`` means what it meant when the run was made.

    Raises:
        ConfigError: the restorer or the policy does not exist, another checkpoint was announced, or a face model or
            weights that were asked for by name are missing.
    """
    settled = _settled(root)
    select.load_policy(config.policy)
    named = {"source": config.dataset.source, "truth": config.dataset.truth}
    paths = {key: path and _absolute(path) for key, path in named.items()}
    looks = _resolve_faces(config, stages, settled)
    if config.restore.identity is not None and looks.model == "off":
        raise ConfigError(
            "restore.identity needs a face model: `idm-curate doctor` says what is missing; do not say --faces off"
        )
    return config.model_copy(
        update={
            "restore": _resolve_restorer(config.restore, stages),
            "dataset": config.dataset.model_copy(update=paths),
            "faces": looks,
            "evidence": _resolve_evidence(config, stages, settled),
            "proof": _resolve_proof(config.proof, stages, root),
        }
    )


def _resolve_proof(proof: Proof, stages: Sequence[str], root: str) -> Proof:
    """What was declared, with what is named now: whoever names nothing goes on with it. Else another is refused."""
    if not {"retrain", "evaluate"} & set(stages):
        return proof
    run = Run(root, {})
    if proof.reference != proofs.HELD_OUT:
        proof = proof.model_copy(update={"reference": _absolute(proof.reference)})
    if proofs.is_declared(run):
        declared, named = proofs.read(run).model_dump(), proof.model_dump(include=proof.model_fields_set)
        try:
            proof = Proof.model_validate(declared | named)
        except ValueError as error:
            raise ConfigError(f"proof, as {run.url('jobs', 'proof.json')} and you have it: {error}") from error
    if "retrain" in stages:
        from pipelines.proof.training import check_trainers

        proofs.local_root(run)
        check_trainers(proof)
    return proof


def _resolve_restorer(config: RestoreConfig, stages: Sequence[str]) -> RestoreConfig:
    """The restorer, and whose severity decides where it reads none, each pinned by the SHA-256 of what it is."""
    name, severity = config.restorer, config.severity
    if not restorers.reads_severity(name):
        severity = severity or restorers.SEVERITY
        if config.steps is not None:
            raise ConfigError(f"restore.steps={config.steps}: only IDM has steps, and the restorer is {name}")
        if not restorers.reads_severity(severity):
            raise ConfigError(f"restore.severity={severity}: only IDM reads a severity; give one of its checkpoints")
        if config.identity is not None:
            raise ConfigError(f"restore.identity={config.identity}: only IDM's passes end by it; leave it to the gates")
    elif severity is not None:
        raise ConfigError(f"restore.severity={severity}: {name} reads its own; leave it out")
    if name.startswith("spandrel:"):
        name = f"spandrel:{_absolute(name.removeprefix('spandrel:'))}"
    pinned = {"restorer": name, "severity": severity}
    for key, what, known in (
        ("sha256", name, config.sha256), ("severity_sha256", severity, config.severity_sha256)
    ):  # fmt: skip
        if what is None or (known is not None and "restore" not in stages):
            continue  # deciding and packing go on when the checkpoint is long gone
        pinned[key] = restorers.digest(what)
        if known not in (None, pinned[key]):
            raise ConfigError(f"restore.{key}={known}: the SHA-256 of {what} is {pinned[key]}")
    return config.model_copy(update=pinned)


def _settled(root: str) -> Config | None:
    """The configuration of the run at ``root``; None if there is none yet."""
    if not storage.exists(storage.join(root, "run.json")):
        return None
    return Config.model_validate(rundir.read(root).config)


def _resolve_faces(config: Config, stages: Sequence[str], settled: Config | None) -> FacesConfig:
    """The face model by its name: what ``auto`` means may be another on the next machine."""
    from pipelines.faces import resolve_faces
    from pipelines.weights import weights_folder

    aligns = config.ingest.align is not None and "ingest" in stages
    if aligns and config.dataset.truth is not None:
        raise ConfigError("--align cuts new images out of the source: there is no --truth of those; give either")
    name: str = config.faces.model
    if name == "auto" and settled is not None:
        name = settled.faces.model
    if name == "auto" or aligns or "restore" in stages:  # deciding and packing go on when the weights are long gone
        name = resolve_faces(name, weights_folder()) or "off"
    if aligns and name == "off":
        raise ConfigError(
            f"--align {config.ingest.align} needs a face model: pip install 'idm-curate[faces]', or put weights into "
            f"{weights_folder()} (`idm-curate doctor` says which), and do not say --faces off"
        )
    return config.faces.model_copy(update={"model": name})


def _resolve_evidence(config: Config, stages: Sequence[str], settled: Config | None) -> EvidenceConfig:
    """Which instruments speak, of those that need a file."""
    from pipelines import weights

    folder, speaks = weights.weights_folder(), dict[str, bool]()
    for name, file in (("lpips", weights.LPIPS_TRUNK), ("niqe", weights.NIQE)):
        wanted: bool | Literal["auto"] = getattr(config.evidence, name)
        if wanted == "auto" and settled is not None:
            wanted = getattr(settled.evidence, name)
        if wanted == "auto":
            found = weights.state(file, folder)
            if found == "wrong":
                log.warning("%s is left out: %s", name, weights.line(file, folder))
            wanted = found == "present"
        elif wanted and "restore" in stages:
            weights.required(file)
        speaks[name] = wanted
    return config.evidence.model_copy(update=speaks)


def _absolute(source: str) -> str:
    """Local paths made absolute (a worker has another working directory), URLs left alone."""
    return "::".join(p if "://" in p else str(Path(p).expanduser().absolute()) for p in source.split("::"))


@contextlib.contextmanager
def opened(root: str, name: str, config: Config) -> Iterator[Run]:
    """The run directory, locked, with its unfinished business swept away."""
    if not storage.is_remote(root):
        root = str(storage.local_path(root).absolute())  # a worker has another working directory
    with rundir.lock(root) as notice:
        if notice:
            log.warning(notice)
        run = rundir.create_or_open(root, name, config.of_the_bytes())
        rundir.empty_staging(run)
        with progress.logged_to(run):
            yield run
        rundir.empty_staging(run)


def execute(run: Run, config: Config, stages: Sequence[str], *, retry_failed: bool = False) -> Outcome:
    """Do these stages, each only as far as it is not done yet. Stops after the first that could not be completed."""
    if retry_failed:
        for failure in attempts.given_up(run):
            attempts.forgive(run, failure["stage"], failure["shard"])
    for stage in stages:
        failures = _STAGES[stage](run, config)
        if failures:
            if "report" in stages:  # of what there is, the failures above all
                _report(run, config)
            return Outcome(run.root, tuple(failures), stage)
    return Outcome(run.root, ())


def _ingest(run: Run, config: Config) -> list[str]:
    if not storage.exists(run.url(rundir.SOURCE, "listing.json")):
        dataset = open_source(run, config)
        marker = ingest.write_listing(run, dataset)
        log.info("listed %d samples; %s", marker["rows"], "; ".join(marker["problems"]) or "nothing was passed over")
    fingerprint = run.stage_fingerprint(rundir.SOURCE)
    failures = _each_shard(run, rundir.SOURCE, fingerprint, ingest.open_ingest, config.resources)
    if not failures:
        groups = ingest.write_duplicates(run)
        log.info("duplicates: %s", groups["counts"] or "none")
    return failures


def open_source(run: Run, config: Config) -> datasets.Dataset:
    """The raw dataset of this run; the sample is built inside the run directory first."""
    stored = run.config["dataset"]
    return datasets.open_dataset(
        stored["name"], stored["source"], truth=stored["truth"], run_dir=storage.local_path(run.root)
    )


def _restore(run: Run, config: Config) -> list[str]:
    folder = rundir.restored(restore.ROUND)
    fingerprint = run.stage_fingerprint(folder)
    return _each_shard(run, folder, fingerprint, restore.open_restore, config.resources, uses_gpu=True)


def _select(run: Run, config: Config) -> list[str]:
    marker = select.select(run, select.load_policy(config.policy, validation=config.validation))
    log.info("view %s: %s", marker["policy"]["name"], marker["counts"])
    return []


def _pack(run: Run, config: Config) -> list[str]:
    view = config.view or select.load_policy(config.policy).name
    fingerprint = pack.cleaned_fingerprint(run, view)
    failures = _each_shard(run, rundir.CLEANED, fingerprint, pack.opener(view), config.resources)
    if not failures:
        pack.write_index_and_card(run, view)
    return failures


def _retrain(run: Run, config: Config) -> list[str]:
    from pipelines.proof.detectors import say_detectors
    from pipelines.proof.jobs import retrain

    say_detectors(config.proof)
    return retrain(run, config.proof, config.resources)


def _evaluate(run: Run, config: Config) -> list[str]:
    from pipelines.proof.balance import balance
    from pipelines.proof.scores import score

    proof = proofs.read(run)
    if not (failures := score(run, proof, config.resources)):
        balance(run, proof, config.resources)
    return failures


def _report(run: Run, config: Config) -> list[str]:
    from pipelines.report import write_report

    # The report says which evidence it is of, so that a finished run ends here at once.
    url = run.url("report.json")
    if not (storage.exists(url) and storage.read_json(url).get("evidence") == status.digest(run)):
        write_report(run.root)
        log.info("report: %s", run.url("report.html"))
    return []


_STAGES: dict[str, Callable[[Run, Config], list[str]]] = dict(
    zip(STAGES, (_ingest, _restore, _select, _pack, _retrain, _evaluate, _report), strict=True)
)


def _each_shard(
    run: Run, folder: str, fingerprint: str, opener: workers.Opener, resources: Resources, *, uses_gpu: bool = False
) -> list[str]:
    """Bring every shard of a stage to be done; returns the paths that say which were given up and why."""
    planned = run.shards()
    todo = [s for s in planned if shards.why_not_done(run.url(folder), s, fingerprint) is not None]
    failures: list[str] = []
    shard_size = int(run.listing()["shard_size"])
    with progress.bar(folder, total=len(planned), done=len(planned) - len(todo)) as bar:

        def watch(samples: int) -> None:
            bar.within(samples / shard_size)

        for shard, outcome in workers.map_shards(run, folder, todo, opener, resources, uses_gpu=uses_gpu, watch=watch):
            if isinstance(outcome, workers.GivenUp):
                log.error("%s/%s is given up: %s", folder, shard, outcome.error.strip().splitlines()[-1])
                failures.append(outcome.path)
            else:
                log.info("%s/%s: %s in %.1f s", folder, shard, outcome["counts"], outcome["seconds"])
            bar.advance(outcome.shard if isinstance(outcome, workers.GivenUp) else shard)
    return failures


# A run keeps the source's bytes twice, as source and as cleaned shards, and candidates beside them; PNG is larger than
# the JPEG it replaces. What the sample's runs and FFHQ's came to, rounded up.
DISK_FACTOR = 3


def plan(root: str, config: Config, stages: Sequence[str]) -> str:
    """What ``execute`` would do, in words; touches nothing."""
    run = None
    try:
        run = rundir.read(root)
        listing = run.listing()
        rows, source_bytes = listing["rows"], listing["source_bytes"]
        done = {s.stage: s.done for s in status.stages(run)}
    except CurateError:
        rows, source_bytes = _measure(config)
        done = {}
    shard_size = config.of_the_bytes()["dataset"]["shard_size"]
    count = -(-rows // shard_size)
    free = storage.free_bytes(root)
    lines = [
        f"run directory {root}",
        f"source        {config.dataset.name}: {rows} samples in {count} shards of {shard_size}",
        f"restorer      {config.restore.restorer} ({restorers.file_of(config.restore.restorer)})",
        f"disk          {_gigabytes(source_bytes, DISK_FACTOR)} needed in all, {_gigabytes(free)} free",
    ]
    folders = {"ingest": rundir.SOURCE, "restore": rundir.restored(restore.ROUND), "pack": rundir.CLEANED}
    for stage in stages:
        if stage == "retrain":
            from pipelines.proof.training import described

            lines += [f"{stage:<13} {line}" for line in described(config.proof, run, rows)]
            continue
        folder = folders.get(stage)
        todo = f"{count - done.get(folder, 0)} of {count} shards to do" if folder else "seconds"
        lines.append(f"{stage:<13} {todo}")
    return "\n".join(lines)


def _gigabytes(nbytes: int | None, factor: float = 1) -> str:
    return "an unknown number of GB" if nbytes is None else f"{nbytes * factor / 1e9:.2g} GB"


def _measure(config: Config) -> tuple[int, int | None]:
    """Samples and bytes of a source that is not listed yet."""
    wanted = config.dataset
    if wanted.name == "sample":
        return min(sample.COUNT, wanted.limit or sample.COUNT), sample.COUNT * 20_000
    entries = datasets.open_dataset(wanted.name, wanted.source, truth=wanted.truth).entries[: wanted.limit]
    return len(entries), ingest.source_bytes(entries)
