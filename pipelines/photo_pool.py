"""Photographs held in memory, within a bound, and the pristine patches that the restorer is trained on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idm_core.degradations import sample_generator
from manifests import rundir, shards, storage
from manifests.errors import SampleError, SourceError
from pipelines import images
from pipelines.datasets import Entry, open_dataset, read_entries
from pipelines.split import Split, split_of

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # HWC

#: Photographs are kept at this many pixels at most: a patch needs no more.
MOST_PIXELS: Final = 2**20
#: A photograph reduced by this much has lost its own softness, noise and JPEG artefacts: what is left is pristine.
LEAST_REDUCTION: Final = 1.7
#: From this short side on a photograph is also taken as it is at times: large clean images look smooth up close,
#: and a restorer that has never seen that takes them for blurred ones.
LARGE: Final = 700
#: Enlarging by these would not be pristine, reducing by these is; no one of them is what every dataset was made with.
FILTERS: Final = (
    Image.Resampling.LANCZOS,
    Image.Resampling.BICUBIC,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
)


@dataclass(frozen=True, slots=True)
class Source:
    """Photographs of one place, and their share of the patches."""

    url: str
    entries: tuple[Entry, ...]
    share: float


def open_sources(urls: Sequence[str], shares: Sequence[float] | None, split: Split) -> list[Source]:
    """List the photographs of one split; without shares, the square roots of their numbers.

    Args:
        urls: folders, zips or tars; or views of runs, ``RUN/views/NAME.parquet``: the samples that the view keeps, each
            restored or as it was.

    Raises:
        SourceError: a source cannot be opened, or holds no photograph of this split.
        ValueError: as many shares as sources are needed, all above 0.
    """
    if shares is not None and (len(shares) != len(urls) or min(shares) <= 0):
        raise ValueError(f"{len(urls)} sources need as many shares, all above 0; there are {list(shares)}")
    sources = []
    for i, url in enumerate(urls):
        there = entries_of_view(url) if url.endswith(".parquet") else open_dataset("folder", url).entries
        entries = tuple(e for e in there if split_of(e.source_name) == split and not _is_withheld(e, split))
        if not entries:
            raise SourceError(f"{url}: no photograph of the {split} split; give a larger source")
        sources.append(Source(url, entries, shares[i] if shares is not None else len(entries) ** 0.5))
    return sources


def _is_withheld(entry: Entry, split: Split) -> bool:
    """Whether it must not be trained on: generators are judged by what the data set, or a view, holds out."""
    return split == "train" and entry.split == "validation"


def entries_of_view(url: str) -> list[Entry]:
    """Where the bytes of a view's samples lie, under their names in the raw dataset, which decide their split; their
    own ``split`` says what the view holds out.

    Raises:
        SourceError: that is no view of a run.
    """
    root, folder, name = url.rsplit("/", 2) if url.count("/") >= 2 else ("", "", "")
    if folder != "views" or not storage.exists(url):
        raise SourceError(f"{url}: no such view; give the path of RUN/views/NAME.parquet")
    run = rundir.read(root)
    if why := shards.why_not_done(run.url("views"), name.removesuffix(".parquet"), None):
        raise SourceError(f"{url}: {why}; make the view again, by `idm-curate select` or `query --view`")
    with storage.open_read(url) as f:
        columns = ["key", "source_name", "shard", "split", "origin", "offset", "nbytes"]
        rows = shards.read_parquet(f, columns).to_pylist()
    return [
        Entry(
            key=row["key"],
            source_name=row["source_name"],
            container=run.url(rundir.FOLDER_OF_ORIGIN[row["origin"]], f"{row['shard']}.tar"),
            offset=row["offset"],
            nbytes=row["nbytes"],
            split=row["split"],
        )
        for row in rows
        if row["origin"] is not None
    ]


class PhotoPool:
    """Patches by index, from photographs in memory: a pure function of (sources, side, seed, nbytes, index).

    Where the photographs do not fit, others take their place every ``refresh`` patches.

    Args:
        side: pixels of a patch's side.
        least: photographs are reduced at least by this factor, but for large ones at times; see ``cut_patch``.
        nbytes: bound on the photographs held; each source has its share of it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        side: int,
        seed: int,
        *,
        least: float = LEAST_REDUCTION,
        nbytes: int = 4 * 2**30,
        refresh: int = 50_000,
    ) -> None:
        self._sources, self._side, self._seed, self._least = list(sources), side, seed, least
        self._nbytes, self._refresh = nbytes, refresh
        self._bounds = list(itertools.accumulate(s.share / sum(s.share for s in sources) for s in sources))
        self._window = -1
        self._complete = False
        self._photos: list[list[Pixels]] = []

    def patch(self, index: int) -> Tensor:
        """The pristine patch of that index, 3HW in [0, 1]."""
        window = index // self._refresh
        if window != self._window and not self._complete:
            self._load(window)
        u = torch.rand(8, generator=sample_generator(self._seed, f"patch {index}"), dtype=torch.float64).tolist()
        source = next(i for i, bound in enumerate(self._bounds) if u[0] < bound or i == len(self._bounds) - 1)
        photos = self._photos[source]
        pixels = cut_patch(photos[int(u[1] * len(photos))], self._side, u[2:], self._least)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    def _load(self, window: int) -> None:
        """Fill the pool with the photographs of a window, drawn by a hash of (seed, window, name)."""
        self._photos, self._complete, self._window = [], True, window
        for source in self._sources:
            budget = self._nbytes * source.share / sum(s.share for s in self._sources)
            order = sorted(source.entries, key=lambda e: _rank(self._seed, window, e.source_name))
            kept: list[tuple[str, Pixels]] = []
            for entry, data in read_entries(order):
                if isinstance(data, SampleError):
                    continue
                try:
                    photo = reduce_photo(images.decode(data).rgb)
                except SampleError:
                    continue  # ingest is where a bad file gets its row; here it is merely not learnt from
                if min(photo.shape[:2]) < self._side:
                    continue
                if photo.nbytes > budget and kept:
                    self._complete = False
                    break
                budget -= photo.nbytes
                kept.append((entry.source_name, photo))
            if not kept:
                raise SourceError(
                    f"{source.url}: none of {len(source.entries)} photographs can be used; "
                    f"each has to be readable and at least {self._side} pixels a side"
                )
            self._photos.append([photo for _, photo in sorted(kept, key=lambda pair: pair[0])])


def reduce_photo(photo: Pixels) -> Pixels:
    """The photograph, or a smaller one of ``MOST_PIXELS``."""
    factor = (photo.shape[0] * photo.shape[1] / MOST_PIXELS) ** 0.5
    if factor <= 1:
        return photo
    size = round(photo.shape[1] / factor), round(photo.shape[0] / factor)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def cut_patch(photo: Pixels, side: int, u: Sequence[float], least: float = LEAST_REDUCTION) -> Pixels:
    """A square of the photograph, reduced to ``side`` pixels, maybe mirrored.

    Two thirds of the reductions are log-uniform between ``least`` and what the whole short side would
    need, a third is exactly that; large photographs give three in ten patches at 1 to ``least``.

    Args:
        photo: HWC, at least ``side`` pixels a side.
        u: six numbers in [0, 1): kind of reduction, reduction, x, y, filter, mirror.
    """
    height, width = photo.shape[:2]
    short = min(height, width)
    most = short / side
    least = min(least, most)
    if short >= LARGE and u[0] < 0.3:
        least, most = 1.0, least
    elif u[0] >= 0.65:
        least = most
    reduction = least * (most / least) ** u[1]
    square = min(reduction * side, short)
    left, top = u[2] * (width - square), u[3] * (height - square)
    if reduction < 1.01:
        patch = photo[int(top) : int(top) + side, int(left) : int(left) + side]
    else:
        box = (left, top, min(left + square, width), min(top + square, height))
        kind = FILTERS[int(u[4] * len(FILTERS))]
        patch = np.asarray(Image.fromarray(photo).resize((side, side), kind, box=box))
    return np.array(patch[:, ::-1] if u[5] < 0.5 else patch)


def _rank(seed: int, window: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{window}:{name}".encode()).digest()
