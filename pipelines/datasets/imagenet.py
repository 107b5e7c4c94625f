"""ImageNet-1k (ILSVRC2012) as its publishers give it: folders, the downloaded tars as they are, or Kaggle's tree."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import IO, Final

import numpy as np

from manifests.errors import SourceError
from pipelines.datasets.archives import open_container, tar_files
from pipelines.datasets.entry import Dataset, Entry, entry_of, some
from pipelines.datasets.files import File, split_images, stem_of, suffix_of
from pipelines.datasets.listing import beside, list_files, unique_names
from pipelines.datasets.reading import read_file

HOMEPAGE: Final = "https://image-net.org"
LICENCE: Final = (
    "ImageNet terms of access: non-commercial research and educational use only; the photographs belong to their "
    "authors, and ImageNet makes no warranty; whoever gives the data to associates must first have them agree to the "
    "same terms; cite Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015."
)

DEVKIT: Final = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar")
GROUND_TRUTH: Final = "ILSVRC2012_validation_ground_truth.txt"
CLASSES: Final = "meta.mat"
KAGGLE_GROUND_TRUTH: Final = "LOC_val_solution.csv"
#: Read for what they are wherever they lie in the source, or beside it.
LABEL_FILES: Final = (*DEVKIT, GROUND_TRUTH, CLASSES, KAGGLE_GROUND_TRUTH)

_WNID: Final = re.compile(r"n\d{8}")
_VALIDATION: Final = re.compile(r"ILSVRC2012_val_(\d{8})")
_TEST: Final = re.compile(r"ILSVRC2012_test_\d{8}")


def wnids() -> list[str]:
    """The 1,000 classes in their standard order, which is that of the sorted WordNet ids: position is label."""
    return Path(__file__).with_name("imagenet_wnids.txt").read_text("ascii").split()


def open_imagenet(source: str) -> Dataset:
    """Open train or validation images, or both, in any official layout. The class tars in a tar are not unpacked.

    An image's class is its folder (or class tar), else the wnid its name begins with, else, for validation images,
    the ground truth of the devkit or of Kaggle. Without any it has no label.

    Raises:
        SourceError: no ImageNet image is there, or a label file cannot be read.
    """
    listing = list_files(source)
    problems = list(listing.problems)
    files = unique_names(_with_inner_tars(listing.files, problems))
    labels = {name: file for name in LABEL_FILES if (file := _find(name, files, source)) is not None}
    images, others = split_images(files, known=[f.source_name for f in labels.values()])
    problems += others
    tests = [f for f in images if _TEST.search(f.source_name)]
    if tests:
        problems.append(f"{len(tests)} test images, which have no labels, were left out")
        images = [f for f in images if not _TEST.search(f.source_name)]
    if not images:
        raise SourceError(f"{source} holds no ImageNet images; found: {'; '.join(problems) or 'nothing'}")

    truth = _ground_truth(labels) if any(_is_flat_validation(f) for f in images) else {}
    index = {wnid: label for label, wnid in enumerate(wnids())}
    entries = [_entry(f, index, truth) for f in images]
    unlabelled = [e for e in entries if e.class_name is None]
    if unlabelled:
        names = some(e.source_name for e in unlabelled)
        problems.append(
            f"{len(unlabelled)} images have no class ({names}): validation labels are read from {DEVKIT[0]} or "
            f"{KAGGLE_GROUND_TRUTH}, inside or beside the source"
        )
    unknown = Counter(e.class_name for e in entries if e.class_name is not None and e.label is None)
    if unknown:
        problems.append(f"{unknown.total()} images are of {len(unknown)} classes not in ImageNet-1k: {some(unknown)}")
    return Dataset("imagenet", source, LICENCE, HOMEPAGE, entries, tuple(problems))


def _with_inner_tars(files: Iterable[File], problems: list[str]) -> list[File]:
    """Replace every tar among the files by its members, and every tar among those by its own."""
    found: list[File] = []
    for container, group in groupby(files, key=lambda f: f.container):
        together = list(group)
        tars = [f for f in together if suffix_of(f.source_name) == "tar" and _basename(f) not in DEVKIT]
        names = {f.source_name for f in tars}
        found += [f for f in together if f.source_name not in names]
        if not tars:
            continue
        with open_container(container) as stream:
            for file in tars:
                if file.error or file.member is not None:
                    problems.append(f"{file.source_name} is lost: {file.error or 'a tar inside a zip is not read'}")
                else:
                    found += _members(file, stream, problems)
    return found


def _members(file: File, stream: IO[bytes], problems: list[str]) -> list[File]:
    start, nbytes = (file.offset, file.nbytes) if file.offset is not None else (0, None)
    members: list[File] = []
    try:
        listed = tar_files(stream, file.container, problems, start=start, nbytes=nbytes)
    except SourceError as error:
        problems.append(f"{file.source_name} is lost: {error}")
        return []
    for member in listed:
        name = f"{file.source_name}/{member.source_name}"
        inner = File(
            source_name=name,
            container=member.container,
            offset=member.offset,
            nbytes=member.nbytes,
            error=member.error,
        )
        if suffix_of(name) == "tar" and member.error is None:
            members += _members(inner, stream, problems)
        else:
            members.append(inner)
    return members


def _find(name: str, files: list[File], source: str) -> File | None:
    """Find a label file in the source or beside it; Kaggle's lies beside the top of ``ILSVRC/Data/CLS-LOC``."""
    inside = next((f for f in files if _basename(f) == name), None)
    place = source.rstrip("/")
    for _ in range(4 if "CLS-LOC" in place else 1):
        inside = inside or beside(place, name)
        place = place.rpartition("/")[0]
    return inside


def _basename(file: File) -> str:
    return file.source_name.rpartition("/")[2]


def _is_flat_validation(file: File) -> bool:
    return bool(_VALIDATION.search(file.source_name)) and not _WNID.search(file.source_name)


def _entry(file: File, index: dict[str, int], truth: dict[int, str]) -> Entry:
    folder, _, name = file.source_name.rpartition("/")
    validation = _VALIDATION.match(name)
    in_folder = _WNID.findall(folder)
    wnid = in_folder[-1] if in_folder else None
    if wnid is None and validation:
        wnid = truth.get(int(validation[1]))
    elif wnid is None and (prefix := _WNID.match(name)):
        wnid = prefix[0]
    folders = folder.lower().split("/")
    split = None
    if validation or "val" in folders or "validation" in folders:
        split = "validation"
    elif wnid:
        split = "train"
    return entry_of(
        file, key=stem_of(name), class_name=wnid, label=index.get(wnid) if wnid is not None else None, split=split
    )


def _ground_truth(labels: dict[str, File]) -> dict[int, str]:
    """Read the classes of the validation images: number in the file name => wnid; empty where no file gives them."""
    if KAGGLE_GROUND_TRUTH in labels:
        rows = csv.DictReader(io.StringIO(read_file(labels[KAGGLE_GROUND_TRUTH]).decode("utf-8")))
        try:
            return {int(row["ImageId"].rpartition("_")[2]): row["PredictionString"].split()[0] for row in rows}
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise SourceError(f"{labels[KAGGLE_GROUND_TRUTH].container} is not Kaggle's table: {error!r}") from error
    if GROUND_TRUTH in labels and CLASSES in labels:
        return _devkit_truth(read_file(labels[GROUND_TRUTH]), read_file(labels[CLASSES]))
    for name in DEVKIT:
        if name not in labels:
            continue
        with tarfile.open(fileobj=io.BytesIO(read_file(labels[name]))) as archive:
            members = {m.name.rpartition("/")[2]: m for m in archive.getmembers() if m.isreg()}
            parts = [archive.extractfile(members[part]) for part in (GROUND_TRUTH, CLASSES) if part in members]
            if len(parts) != 2 or parts[0] is None or parts[1] is None:
                raise SourceError(f"{labels[name].container} holds no {GROUND_TRUTH} and {CLASSES}")
            return _devkit_truth(parts[0].read(), parts[1].read())
    return {}


def _devkit_truth(ground_truth: bytes, meta: bytes) -> dict[int, str]:
    """Join the devkit's two files: a line an image with ILSVRC2012_ID, which is not the label; and id => wnid."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(synsets)}
        return {number: wnid_of[int(line)] for number, line in enumerate(ground_truth.split(), 1)}
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise SourceError(f"the ImageNet devkit cannot be read: {type(error).__name__}: {error}") from error
