"""Where files live: local paths or any fsspec URL, read by range, and written so that no half-written file is seen."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import IO, Any, cast


def is_remote(url: str) -> bool:
    """Whether ``url`` names anything but a local path."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> Path:
    """The local path that a path or ``file://`` URL names."""
    return Path(url.removeprefix("file://"))


def join(url: str, *parts: str) -> str:
    """Append path components to a path or URL."""
    return "/".join([url.rstrip("/"), *parts])


def _remote(url: str) -> tuple[Any, str]:
    import fsspec  # only here: a local run never pays for it

    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(url):
        return local_path(url).exists()
    fs, path = _remote(url)
    return bool(fs.exists(path))


def size(url: str) -> int | None:
    """The file's length in bytes, or None if it is not there."""
    try:
        if not is_remote(url):
            return local_path(url).stat().st_size
        fs, path = _remote(url)
        return int(fs.size(path))
    except FileNotFoundError:
        return None


def list_names(url: str, suffix: str = "") -> list[str]:
    """Sorted base names in a folder that end in ``suffix``; empty if there is no such folder."""
    try:
        if not is_remote(url):
            names = os.listdir(local_path(url))
        else:
            fs, path = _remote(url)
            fs.invalidate_cache(path)  # a listing cached before another process wrote is a shard done twice
            names = [str(p).rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(n for n in names if n.endswith(suffix))


def open_read(url: str) -> IO[bytes]:
    """Open for reading bytes; seekable."""
    if not is_remote(url):
        return local_path(url).open("rb")
    fs, path = _remote(url)
    return cast(IO[bytes], fs.open(path, "rb"))


def read_bytes(url: str) -> bytes:
    """The whole file."""
    with open_read(url) as f:
        return f.read()


def read_json(url: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no JSON object.
    """
    value = json.loads(read_bytes(url))
    if not isinstance(value, dict):
        raise ValueError(f"{url}: expected a JSON object, found {type(value).__name__}")
    return value


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(staged: Path, url: str) -> None:
    """Move a complete staged file to its final name: ``os.replace`` locally, one put on an object store."""
    if is_remote(url):
        fs, path = _remote(url)
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.put_file(str(staged), path)
        staged.unlink()
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    _fsync(staged)
    os.replace(staged, target)
    _fsync(target.parent)


def write_bytes(data: bytes, url: str) -> None:
    """Write a small file whole or not at all."""
    if is_remote(url):
        fs, path = _remote(url)
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    beside.write_bytes(data)
    publish(beside, url)


def write_json(value: dict[str, Any], url: str) -> None:
    """Write a JSON object whole or not at all."""
    write_bytes(json_bytes(value), url)


def json_bytes(value: dict[str, Any]) -> bytes:
    """Sorted and indented, so that equal values are equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_if_changed(data: bytes, url: str) -> None:
    """Write a small file unless it is there already with these bytes."""
    if not exists(url) or read_bytes(url) != data:
        write_bytes(data, url)


def retire(url: str, rubbish: Path) -> None:
    """Take a file away from its final name; locally it is moved among the rubbish, the one place that is emptied."""
    if is_remote(url):
        fs, path = _remote(url)
        fs.rm_file(path)
        return
    rubbish.mkdir(parents=True, exist_ok=True)
    os.replace(local_path(url), rubbish / f"{local_path(url).name}.{uuid.uuid4().hex}")


def free_bytes(url: str) -> int | None:
    """Free space where ``url`` is or will be, bytes; None where that cannot be known (object stores)."""
    if is_remote(url):
        return None
    path = local_path(url).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
