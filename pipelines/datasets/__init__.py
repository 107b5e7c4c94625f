"""Datasets in the layouts their publishers give them, as sorted lists of entries that any worker can read.

``open_dataset`` lists and never decodes; ``read_entries`` yields bytes, or the reason why there are none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from manifests.errors import ConfigError, SourceError
from pipelines.datasets import sample
from pipelines.datasets.entry import Dataset, Entry
from pipelines.datasets.files import File, local_or_url
from pipelines.datasets.reading import read_entries
from pipelines.datasets.truth import read_truths

__all__ = [
    "DATASETS",
    "Dataset",
    "Entry",
    "File",
    "how_to_get",
    "open_dataset",
    "read_entries",
    "read_truths",
    "sample",
]

DATASETS: Final = ("sample", "ffhq", "imagenet", "folder", "webdataset")

_SAMPLE_COMMAND: Final = (
    "To see it work first, on photographs that are installed already:\n\n    idm-curate run --dataset sample"
)

_HOW_TO_GET: Final = {
    "ffhq": f"""\
--dataset ffhq needs --source PATH: FFHQ as NVIDIA publishes it. It is not fetched for you.

Get it from https://github.com/NVlabs/ffhq-dataset (python download_ffhq.py --json --images, 89 GB; or --thumbs, 2 GB).
Licence: CC BY-NC-SA 4.0, non-commercial; single photographs under their own licences, named in the JSON.

PATH is a folder, or a zip of it, or a URL of either:

    PATH/ffhq-dataset-v2.json                     optional: checksums, licences, upscaling, photo of origin
    PATH/images1024x1024/00000/00000.png ...      or thumbnails128x128/00000/00000.png, or 00000.png alone

{_SAMPLE_COMMAND}
""",
    "imagenet": f"""\
--dataset imagenet needs --source PATH: ILSVRC2012 as its publishers give it. It is not fetched for you.

Get it from https://image-net.org/download-images (an account and its terms: non-commercial research), or from
https://www.kaggle.com/c/imagenet-object-localization-challenge (155 GB).

PATH is one of these, or a folder that holds several, or a URL:

    PATH/train/n01440764/n01440764_10026.JPEG ...     and PATH/val/, sorted into wnid folders or flat
    ILSVRC2012_img_train.tar                          as downloaded, a tar of class tars; not to be unpacked
    ILSVRC2012_img_val.tar                            with ILSVRC2012_devkit_t12.tar.gz beside it for the labels
    ILSVRC/Data/CLS-LOC/train/n01440764/ ...          Kaggle's, with LOC_val_solution.csv beside ILSVRC/

{_SAMPLE_COMMAND}
""",
}


def how_to_get(name: str) -> str:
    """Say where a dataset is to be had, which layout is expected, and how to try the pipeline without it."""
    return _HOW_TO_GET.get(name) or f"--dataset {name} needs --source PATH_OR_URL.\n\n{_SAMPLE_COMMAND}\n"


def open_dataset(
    name: str, source: str | None = None, *, run_dir: Path | None = None, truth: str | None = None
) -> Dataset:
    """Open a dataset: list every image in it and gather what the dataset says about each.

    Args:
        name: one of ``DATASETS``.
        source: local path or fsspec URL; ``sample`` needs none.
        run_dir: where ``sample`` materialises its images.
        truth: folder, zip or tar of pristine images with the same names, for measuring only.

    Raises:
        ConfigError: no such dataset, or no source; the message says how to get one.
        SourceError: the source is missing or not in the dataset's layout.
    """
    if name not in DATASETS:
        raise ConfigError(f"--dataset {name}: unknown, it is one of {', '.join(DATASETS)}")
    if name == "sample":
        if source is not None or run_dir is None:
            raise ConfigError("--dataset sample is built into the run directory and takes no --source")
        dataset = sample.open_sample(run_dir)
    elif source is None:
        raise ConfigError(how_to_get(name))
    else:
        dataset = _open_source(name, source)
    if truth is not None:
        from pipelines.datasets.truth import with_truth

        dataset = replace(dataset, entries=with_truth(dataset.entries, local_or_url(truth)))
    return dataset


def _open_source(name: str, source: str) -> Dataset:
    if source.startswith("pipe:"):
        raise SourceError(f"{source}: commands are not run; give a path or a URL")
    if name == "ffhq":
        from pipelines.datasets.ffhq import open_ffhq

        return open_ffhq(local_or_url(source))
    if name == "imagenet":
        from pipelines.datasets.imagenet import open_imagenet

        return open_imagenet(local_or_url(source))
    if name == "webdataset":
        from pipelines.datasets.webdataset_tars import open_webdataset

        return open_webdataset(source)
    from pipelines.datasets.folder import open_folder

    return open_folder(local_or_url(source))
