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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    check_names(side_files)
    with failures(folder):
        check_free(folder, overwrite)
        needed = sum(source.nbytes for source in sources.values()) + sum(map(len, side_files.values()))
        require_space(folder, needed)
        partial = partial_name(folder)
        partial.mkdir(parents=True)
        try:
            shards = plan_shards(sources, max_shard_bytes)
            for name, shard in shards.items():
                _write_tensors(partial / name, shard, metadata)
            write_side_files(partial, side_files, index_of(shards))
            replace_folder(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return folder


def write_file(path: str | os.PathLike[str], tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """Write one safetensors file, replacing what is there once the new one is whole. Raises as `save_checkpoint`."""
    path = Path(path)
    sources = {name: _source(name, tensor) for name, tensor in tensors.items()}
    with failures(path):
        if path.is_dir():
            raise OutputError("is a folder", file=path)
        require_space(path, sum(source.nbytes for source in sources.values()))
        partial = partial_name(path)
        try:
            _write_tensors(partial, sources, metadata)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return path


def _source(name: str, tensor: np.ndarray | TensorSource) -> TensorSource:
    return tensor if isinstance(tensor, TensorSource) else TensorSource.of(np.asarray(tensor), name)


def partial_name(out: Path) -> Path:
    """Where this process writes what becomes `out`."""
    return out.with_name(f"{out.name}.partial-{os.getpid()}")


@contextlib.contextmanager
def failures(out: Path) -> Iterator[None]:
    """Whatever the system refuses becomes an `OutputError` about `out`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written ({error})", file=out) from error


def check_names(side_files: Mapping[str, bytes]) -> None:
    """Raises `UsageError` where a side file would not lie in the folder itself."""
    for name in side_files:
        if not _FILE_NAME.fullmatch(name):
            raise UsageError("not a plain file name", key=name)


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises `OutputError` where `folder` is taken and nobody asked to overwrite it."""
    if os.path.lexists(folder) and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise OutputError("is there already", file=folder, hint="Choose another name, or ask to overwrite it.")


def write_side_files(folder: Path, side_files: Mapping[str, bytes], index: bytes | None) -> None:
    """Write the index, where there is one, and the side files; config.json last: without it nothing is a model yet."""
    if index is not None:
        write_bytes(folder / INDEX_NAME, [index])
    for name in sorted(side_files, key=lambda name: (name == "config.json", name)):
        write_bytes(folder / name, [side_files[name]])


def require_space(out: Path, needed: int) -> None:
    """Raises `OutputError` where the disk that `out` would lie on has less than `needed` bytes free."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OutputError(
            "not enough space on the disk", file=out, found=f"{free:,} free", allowed=f"{needed:,} needed"
        )


def plan_shards(sources: Mapping[str, TensorSource], max_shard_bytes: int) -> dict[str, dict[str, TensorSource]]:
    """The tensors by file name: model.safetensors, or numbered shards of at most so many bytes (or one tensor)."""
    shards: list[dict[str, TensorSource]] = [{}]
    held = 0
    for name, source in sources.items():
        if shards[-1] and held + source.nbytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = source
        held += source.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{number:05d}-of-{count:05d}.safetensors": shard for number, shard in enumerate(shards, start=1)}


def index_of(shards: Mapping[str, Mapping[str, TensorSource]]) -> bytes | None:
    """The bytes of the index over several files; None for one."""
    if len(shards) == 1:
        return None
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    total = sum(source.nbytes for shard in shards.values() for source in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2).encode()


def lay_out(
    path: Path, sources: Mapping[str, TensorSource], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, int]]:
    """(what the file begins with, where each tensor's bytes begin in it, in their order). Raises `OutputError`."""
    # wide elements first, so that every tensor begins at a multiple of its element size
    order = sorted(sources, key=lambda name: -NUMPY_DTYPES[sources[name].dtype].itemsize)
    table: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    begins: dict[str, int] = {}
    position = 0
    for name in order:
        source = sources[name]
        end = position + source.nbytes
        table[name] = {"dtype": source.dtype, "shape": list(source.shape), "data_offsets": [position, end]}
        begins[name] = position
        position = end
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise OutputError("too many tensors for one file", file=path, found=f"header of {len(header):,} bytes")
    opening = len(header).to_bytes(PREFIX_BYTES, "little") + header
    return opening, {name: len(opening) + begin for name, begin in begins.items()}


def _write_tensors(path: Path, sources: Mapping[str, TensorSource], metadata: Mapping[str, str] | None) -> None:
    opening, begins = lay_out(path, sources, metadata)

    def pieces() -> Iterator[bytes | memoryview]:
        yield opening
        for name in begins:
            yield bytes_of(name, sources[name])

    write_bytes(path, pieces())


def bytes_of(name: str, source: TensorSource) -> memoryview:
    """A tensor's bytes as stored. Raises `UsageError` where it is not what was announced."""
    array = source.load()
    dtype = NUMPY_DTYPES[source.dtype]
    if array.shape != tuple(source.shape) or array.dtype.newbyteorder("<") != dtype:
        found, allowed = f"{array.dtype} {list(array.shape)}", f"{dtype} {list(source.shape)}"
        raise UsageError("is not what was announced", key=name, found=found, allowed=allowed)
    return memoryview(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8))


def write_bytes(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file and have it on the disk."""
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if os.name == "nt":  # Windows cannot flush a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(partial: Path, folder: Path) -> None:
    """Let the whole folder `partial` take the name `folder`; what had it goes once the new one stands there."""
    sync_folder(partial)
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
    sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old)
