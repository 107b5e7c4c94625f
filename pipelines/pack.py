"""A view to the product: cleaned WebDataset shards, their manifests, a wids index and a dataset card."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from manifests import rundir, schema, shards, status, storage
from manifests.errors import RunError, ShardError
from manifests.rundir import Run
from pipelines import progress


def opener(view: str) -> Callable[[Run, str], Callable[[str], dict[str, Any]]]:
    """The stage's opener for one view, by name."""
    return partial(_open_pack, view)


def _open_pack(view: str, run: Run, device: str) -> Callable[[str], dict[str, Any]]:
    fingerprint = cleaned_fingerprint(run, view)

    def work(shard: str) -> dict[str, Any]:
        with run.scratch() as scratch:
            return pack_shard(run, shard, view, fingerprint, scratch)

    return work


def cleaned_fingerprint(run: Run, view: str) -> str:
    """What the product's bytes depend on: all that the view depends on.

    Raises:
        RunError: there is no such view.
    """
    try:
        marker = storage.read_json(run.url("views", f"{view}.json"))
    except FileNotFoundError:
        views = ", ".join(status.views(run)) or "none"
        raise RunError(
            f"{run.root}: there is no view {view!r}, only {views}; `idm-curate select` and `query --view` make them"
        ) from None
    return rundir.cleaned_fingerprint(marker)


def pack_shard(run: Run, shard: str, view: str, fingerprint: str, scratch: Path) -> dict[str, Any]:
    """Write one cleaned shard: the bytes that the view decided on, and every column that is known of each sample.

    Raises:
        ShardError: bytes in a source or restored tar are not those that its manifest recorded.
    """
    source = {r["key"]: r for r in shards.read_rows(run.url(rundir.SOURCE), shard).to_pylist()}
    restored = {r["key"]: r for r in shards.read_rows(run.url(rundir.restored(1)), shard).to_pylist()}
    with storage.open_read(run.url("views", f"{view}.parquet")) as f:
        decided = shards.read_parquet_of(f, shard)
    if [r["key"] for r in decided] != list(source):
        raise ShardError(f"views/{view}.parquet: its keys of shard {shard} are not the source's; run `verify`")
    rows = []
    for row in decided:
        evidence = {n: restored[row["key"]][n] for n in schema.names(schema.RESTORATION)}
        rows.append(source[row["key"]] | evidence | row)
    chosen = [r for r in rows if r["origin"] is not None]
    with shards.StagedTar(scratch / f"{shard}.tar") as tar:
        for row, data in zip(chosen, _bytes_of(run, shard, chosen), strict=True):
            if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
                raise ShardError(f"{row['origin']}, {shard}.tar: the bytes of {row['key']} are not those of its row")
            tar.add(row["key"], shards.members_of(row, data))
            progress.tick()
        shards.locate(chosen, tar.close())
    return shards.commit(
        run.url(rundir.CLEANED), shard, fingerprint, tar.path, rows, schema.CLEANED, rubbish=run.staging,
        extra={"stage": rundir.CLEANED, "view": view, "samples": len(chosen)},
    )  # fmt: skip


def _bytes_of(run: Run, shard: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
    """The chosen bytes of each row, in order, from whichever tar holds them."""
    streams = {
        origin: shards.read_samples(
            run.url(folder, f"{shard}.tar"), [(r["offset"], r["nbytes"]) for r in rows if r["origin"] == origin]
        )
        for origin, folder in rundir.FOLDER_OF_ORIGIN.items()
    }
    for row in rows:
        yield next(streams[row["origin"]])


def write_index_and_card(run: Run, view: str) -> None:
    """After the shards: ``index.json`` for wids, and ``README.md``, the dataset card."""
    markers = {s: storage.read_json(run.url(rundir.CLEANED, f"{s}.json")) for s in run.shards()}
    index = {
        "wids_version": 1,
        "name": f"{run.listing()['prefix']}-cleaned",
        "shardlist": [
            {"url": f"{s}.tar", "nsamples": m["samples"], "filesize": m["files"]["tar"]["bytes"]}
            for s, m in markers.items()
        ],
    }
    card = dataset_card(run, view, list(markers.values()))
    storage.write_if_changed(storage.json_bytes(index), run.url(rundir.CLEANED, "index.json"))
    storage.write_if_changed(card.encode(), run.url(rundir.CLEANED, "README.md"))


def dataset_card(run: Run, view: str, markers: list[dict[str, Any]]) -> str:
    """The dataset card: what this is, what was done, what the licence asks. Markdown with a YAML head."""
    listing, config = run.listing(), run.config
    decided = storage.read_json(run.url("views", f"{view}.json"))
    counts = sum((Counter(m["counts"]) for m in markers), Counter[str]())
    samples = sum(m["samples"] for m in markers)
    head = yaml.safe_dump({"pretty_name": f"{listing['prefix']}, cleaned", "tags": ["webdataset", "image"]})
    source = config["dataset"]["source"] or "photographs that scikit-image and matplotlib carry"
    table = "\n".join(f"| {name} | {counts[name]} |" for name in schema.STATUSES)
    query = ""
    if "query" in decided:
        query = f"\nof those, the samples that this chooses:\n\n```sql\n{decided['query']}\n```\n"
    return f"""---
{head}---

# {listing["prefix"]}, cleaned

{samples} samples in {len(markers)} WebDataset shards, made by idm-curate from: {source}

Images that needed no restoration keep their original bytes. Restored ones are lossless PNG. Every source image has
one row in the Parquet manifests beside the shards, with its status, the reason, and all measurements.

| status | samples |
| --- | --- |
{table}

- Source: {source} {listing["homepage"]}
- Licence and its obligations: {listing["licence"]}
- Changes to the images: those with status `restored` were changed by the restorer `{config["restore"]["restorer"]}`
  (SHA-256 `{config["restore"]["sha256"]}`), a neural network: fine detail in them is inferred, not recorded.
- View `{view}`, by this policy:

```yaml
{yaml.safe_dump(decided["policy"], sort_keys=False)}```
{query}
- Run fingerprint: `{run.fingerprint}`

```python
import webdataset as wds
shards = "{listing["prefix"]}-{{000000..{len(markers) - 1:06d}}}.tar"
dataset = wds.WebDataset(shards).decode("pil").to_tuple("png;jpg;webp", "json")
```
"""
