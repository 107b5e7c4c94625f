"""Curated samples for other trainers: a StyleGAN zip, a Hugging Face imagefolder, plain files; streamed, resumable.

A shard of the run is the unit: its images are written into a staging folder beside the target and committed there, so
that a kill costs one shard at most. The target gets its name when all of it is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from manifests import rundir, storage
from manifests.errors import ConfigError, RunError, SampleError
from manifests.rundir import Run
from pipelines import progress
from pipelines.exports import arm, picture, plan, staging, stylegan, tree
from pipelines.exports.arm import Arm
from pipelines.exports.manifest import Parts
from pipelines.exports.plan import Plan, Request, Row

log = logging.getLogger("idm_curate")


class Format(Protocol):
    """How images become an export: one is added at a time, then all of it is closed."""

    def add(self, row: Row, data: bytes) -> str: ...
    def finish(self, parts: Parts, about: dict[str, Any]) -> Path: ...


def export(
    run: Run,
    to: str,
    request: Request,
    *,
    workers: int = 0,
    dry_run: bool = False,
    say: Callable[[str], None] = log.info,
) -> None:
    """Write the export, or go on writing it. Nothing is done twice: if it is there already, this returns at once.

    Args:
        to: a ``.zip`` file for the ``stylegan`` format, else a folder; not there yet, or this very export.
        workers: processes that decode, resize and encode where images are not copied; 0: this one.
        dry_run: say what would be written, and touch nothing.
        say: takes each line that there is to say.

    Raises:
        ConfigError: the request contradicts itself or the run.
        RunError: the target is something else, the disk is too small or full, or the run is not whole.
    """
    if storage.is_remote(to):
        raise ConfigError(f"--to {to}: exports are written to local paths; copy the finished one from there")
    target = Path(os.path.abspath(storage.local_path(to)))  # noqa: PTH100 - resolve() would follow the target's link
    if (request.format == "stylegan") != (target.suffix == ".zip"):
        raise ConfigError(f"--to {target}: stylegan exports are .zip files, the others are folders")
    folder = staging.folder_of(target)
    with arm.opened(run, request.arm, request.view) as opened:
        parameters = plan.parameters_of(opened, request)
        if _is_finished(target, request, parameters):
            say(f"{target}: already there, with these options; nothing to do")
            if folder.exists():  # a driver ended between its last two steps
                with rundir.lock(str(folder)):
                    shutil.rmtree(folder)
            return
        planned = plan.make_plan(opened, request, parameters)
        for line in plan.describe(planned):
            say(line)
        free = storage.free_bytes(str(target))
        if dry_run:
            say(f"{target}: about {_size(planned.needed)} needed, {_size(free)} free")
            return
        missing = planned.needed - staging.Staging(folder, parameters).nbytes
        if free is not None and missing > free:
            raise RunError(
                f"{target}: about {_size(missing)} are needed and {_size(free)} are free there; "
                "make room, or choose another --to, a smaller --resolution or a --limit"
            )
        _write(opened, planned, target, workers, say)
    say(f"{target}: {planned.survey.images} images")


def _is_finished(target: Path, request: Request, parameters: dict[str, Any]) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    about = stylegan.read_about(target) if request.format == "stylegan" else tree.read_about(target)
    if about is None or "parameters" not in about:
        raise RunError(f"{target} is there already and is no export in this format; give another --to")
    different = rundir.differing_keys(about["parameters"], parameters)
    if different:
        raise RunError(f"{target} was exported with other options: {'; '.join(different)}; give another --to")
    return True


def _size(nbytes: int | None) -> str:
    return "an unknown number of GB" if nbytes is None else f"{nbytes / 1e9:.3g} GB"


def _write(opened: Arm, planned: Plan, target: Path, workers: int, say: Callable[[str], None]) -> None:
    """All shards that are not committed yet, then the end of it, then the name."""
    folder, total = staging.folder_of(target), planned.survey.shards
    done = 0
    try:
        with rundir.lock(str(folder)), staging.Staging(folder, planned.parameters) as stage:
            if stage.shards:
                say(f"going on after {stage.shards} of {total} shards, {stage.images} images")
            form: Format
            if planned.request.format == "stylegan":
                form = stylegan.StyleGanZip(stage)
            else:
                form = tree.Tree(stage, planned.request.format)
            parts = Parts(folder / "parts")
            title = f"export {planned.request.format}"
            with _encoding(planned, workers) as encoded, progress.bar(title, total, stage.shards) as bar:
                for shard in opened.run.shards()[stage.shards : total]:
                    done = stage.shards
                    rows, _ = plan.wanted(opened, planned.request, shard)
                    rows = rows[: planned.survey.images - stage.images]
                    images = encoded(opened.images(shard, rows))
                    exported, nbytes = [], 0
                    for row, image in zip(opened.described(shard, rows), images, strict=True):
                        row = _as_exported(row, image, planned)
                        exported.append(row | {"file_name": form.add(row, image)})
                        nbytes += len(image)
                        bar.within(len(exported) / len(rows))
                    parts.write(shard, exported)
                    stage.commit(images=len(exported), nbytes=nbytes)
                    bar.within(0)
                    bar.advance(shard)
            storage.publish(form.finish(parts, planned.about), str(target))
            shutil.rmtree(folder)
    except OSError as error:
        raise RunError(
            f"{target}: {error}, after {done} of {total} shards. What is done is kept in {folder}: "
            "mend the cause (free some space?) and run the same command again."
        ) from error


def _as_exported(row: Row, image: bytes, planned: Plan) -> Row:
    """The row of a sample with the columns that are about its file, as that file is now."""
    row = {name: value for name, value in row.items() if name != "offset"}
    if planned.resolution is not None:
        width, height = picture.size_at(row["width"], row["height"], planned.resolution, planned.request.crop)
        row |= {"ext": "png", "width": width, "height": height}
        row |= {"nbytes": len(image), "output_sha256": sha256(image).hexdigest()}
    return row


@contextlib.contextmanager
def _encoding(planned: Plan, workers: int) -> Iterator[Callable[[Iterator[bytes]], Iterator[bytes]]]:
    """How image files become those of the export: copied, or encoded here or by processes; the order stays."""
    if planned.resolution is None:
        yield lambda files: files
        return
    work = partial(_encoded, resolution=planned.resolution, crop=planned.request.crop)
    if workers == 0:
        yield partial(map, work)
        return
    import multiprocessing

    # Spawned: a fork of a process in which Arrow has threads may hang. Ctrl-C is for the driver alone.
    deaf = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, deaf)
    try:
        yield partial(_in_order, pool, work, 2 * workers)
    except BrokenProcessPool as error:
        raise RunError(f"a process that encodes died ({error}); fewer --workers need less memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encoded(data: bytes, resolution: int, crop: picture.Crop) -> bytes:
    try:
        return picture.at_resolution(data, resolution, crop)
    except SampleError as error:
        raise RunError(f"an image that was read before cannot be decoded: {error}; run `verify --hashes`") from error


def _in_order(
    pool: ProcessPoolExecutor, work: Callable[[bytes], bytes], ahead: int, files: Iterator[bytes]
) -> Iterator[bytes]:
    """``map`` over processes that reads no more than ``ahead`` files in advance."""
    pending: deque[Future[bytes]] = deque()
    for file in files:
        pending.append(pool.submit(work, file))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
