"""Writing safetensors so that a name never stands for half a file.

A file or a folder is written aside (`<out>.partial-<pid>`), flushed to the disk, and renamed when it is whole; within
a folder config.json comes last. A crash leaves `*.partial-*`, which `open_checkpoint` refuses. Tensors are taken one
at a time, so a checkpoint larger than memory can be written from sources that compute each when asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import OutputError, UsageError
from edgellm.formats.dtypes import NUMPY_DTYPES, stored_name
from edgellm.formats.header import PREFIX_BYTES
from edgellm.formats.limits import MAX_HEADER_BYTES
from edgellm.formats.locate import INDEX_NAME

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*")  # "." and ".." are none

MAX_SHARD_BYTES = 5 << 30  # what the hub's tools use


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written: its kind is known now, its values come when they are asked for.

    Attributes:
        dtype: safetensors name.
        shape: dimensions.
        load: returns an array of that shape, in the NumPy dtype that stands for `dtype` (BF16: uint16).
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * NUMPY_DTYPES[self.dtype].itemsize

    @staticmethod
    def of(array: np.ndarray, name: str = "array") -> TensorSource:
        """An array at hand; uint16 means bfloat16. Raises `UsageError` for a dtype that cannot be stored."""
        dtype = stored_name(array.dtype)
        if dtype is None:
            raise UsageError("cannot be stored in safetensors", key=name, found=array.dtype)
        return TensorSource(dtype, array.shape, lambda: array)

    @staticmethod
    def of_bytes(data: bytes) -> TensorSource:
        """The bytes of a file as a U8 tensor."""
        return TensorSource.of(np.frombuffer(data, np.uint8))


Tensors = Mapping[str, "np.ndarray | TensorSource"]


def save_checkpoint(
    tensors: Tensors,
    folder: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    side_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder: model.safetensors, or shards with an index, and the side files.

    Args:
        tensors: arrays (uint16 is bfloat16) or `TensorSource`s, by name.
        folder: must not exist, or be empty, unless `overwrite`.
        metadata: `__metadata__` of each file; `"format": "pt"` is added, transformers asks for it.
        max_shard_bytes: a shard holds at most this much, or one tensor.
        side_files: bytes by plain file name.
        overwrite: replace what is there, once the new folder is whole.

    Returns:
        `folder`.

    Raises:
        OutputError: the folder is taken, or cannot be written; what was there is untouched.
        UsageError: an array cannot be stored.
    """
    folder = Path(folder)
    sources = {name: _source(name, tensor) for name, tensor in tensors.items()}
    side_files = dict(side_files or {})
    for name in side_files:
        if not _FILE_NAME.fullmatch(name):
            raise UsageError("not a plain file name", key=name)
    with _failures(folder):
        if os.path.lexists(folder) and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
            raise OutputError("is there already", file=folder, hint="Choose another name, or ask to overwrite it.")
        needed = sum(source.nbytes for source in sources.values()) + sum(map(len, side_files.values()))
        _require_space(folder, needed)
        partial = _partial_name(folder)
        partial.mkdir(parents=True)
        try:
            for name, shard in _shards(sources, max_shard_bytes, partial):
                _write_tensors(partial / name, shard, metadata)
            # config.json last: a folder without it is not a model yet
            for name in sorted(side_files, key=lambda name: (name == "config.json", name)):
                _write_bytes(partial / name, [side_files[name]])
            _sync_folder(partial)
            _replace_folder(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return folder


def write_file(path: str | os.PathLike[str], tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """Write one safetensors file, replacing what is there once the new one is whole. Raises as `save_checkpoint`."""
    path = Path(path)
    sources = {name: _source(name, tensor) for name, tensor in tensors.items()}
    with _failures(path):
        if path.is_dir():
            raise OutputError("is a folder", file=path)
        _require_space(path, sum(source.nbytes for source in sources.values()))
        partial = _partial_name(path)
        try:
            _write_tensors(partial, sources, metadata)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


def _source(name: str, tensor: np.ndarray | TensorSource) -> TensorSource:
    return tensor if isinstance(tensor, TensorSource) else TensorSource.of(np.asarray(tensor), name)


def _partial_name(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial-{os.getpid()}")


@contextlib.contextmanager
def _failures(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written ({error})", file=out) from error


def _require_space(out: Path, needed: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OutputError(
            "not enough space on the disk", file=out, found=f"{free:,} free", allowed=f"{needed:,} needed"
        )


def _shards(
    sources: dict[str, TensorSource], max_shard_bytes: int, folder: Path
) -> Iterator[tuple[str, dict[str, TensorSource]]]:
    """File names and their tensors; writes the index after the last where there are several."""
    shards: list[dict[str, TensorSource]] = [{}]
    held = 0
    for name, source in sources.items():
        if shards[-1] and held + source.nbytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = source
        held += source.nbytes
    if len(shards) == 1:
        yield "model.safetensors", shards[0]
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(shard, file))
        yield file, shard
    total = sum(source.nbytes for source in sources.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_bytes(folder / INDEX_NAME, [json.dumps(index, indent=2).encode()])


def _write_tensors(path: Path, sources: dict[str, TensorSource], metadata: Mapping[str, str] | None) -> None:
    # wide elements first, so that every tensor begins at a multiple of its element size
    order = sorted(sources, key=lambda name: -NUMPY_DTYPES[sources[name].dtype].itemsize)
    table: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for name in order:
        source = sources[name]
        end = position + source.nbytes
        table[name] = {"dtype": source.dtype, "shape": list(source.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise OutputError("too many tensors for one file", file=path, found=f"header of {len(header):,} bytes")

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(header).to_bytes(PREFIX_BYTES, "little") + header
        for name in order:
            yield _bytes_of(name, sources[name])

    _write_bytes(path, pieces())


def _bytes_of(name: str, source: TensorSource) -> memoryview:
    array = source.load()
    dtype = NUMPY_DTYPES[source.dtype]
    if array.shape != tuple(source.shape) or array.dtype.newbyteorder("<") != dtype:
        found, allowed = f"{array.dtype} {list(array.shape)}", f"{dtype} {list(source.shape)}"
        raise UsageError("is not what was announced", key=name, found=found, allowed=allowed)
    return memoryview(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8))


def _write_bytes(path: Path, pieces: Iterator[bytes | memoryview] | list[bytes]) -> None:
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot flush a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_folder(partial: Path, folder: Path) -> None:
    old = None
    if os.path.lexists(folder):
        old = folder.with_name(f"{folder.name}.partial-old-{os.getpid()}")
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except OSError:
        if old is not None:
            os.rename(old, folder)
        raise
    _sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old)
