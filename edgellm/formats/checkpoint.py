"""A published checkpoint as named tensors, wherever its bytes lie: a file, a folder, shards with an index, a bundle."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from edgellm.errors import ModelError, UsageError
from edgellm.formats.bundle import is_bundle, is_bundled_name, read_side_files
from edgellm.formats.dtypes import FLOAT_DTYPES, bfloat16_to_float32
from edgellm.formats.header import TensorInfo
from edgellm.formats.limits import MAX_OPEN_SHARDS
from edgellm.formats.locate import Location, locate
from edgellm.formats.reader import SafetensorsFile
from edgellm.sidefiles import FolderFiles, SideFiles


class Checkpoint:
    """The tensors of a model and the small files that belong to it. Made by `open_checkpoint`.

    Opening reads headers only; each tensor is copied when it is asked for.

    Attributes:
        path: what the user named.
        files: the safetensors files, in order.
        side_files: config, tokenizer and so on: the folder's, or the bundle's own. A bundle is whole: files that
            happen to lie beside it are not looked at.
        tensors: what is stored, by name.
        metadata: `__metadata__` of the first file.
        notes: oddities that change nothing, each worth a line under `-v`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        location = locate(path)
        self.files = location.files
        self.notes: list[str] = []
        self._shards: list[SafetensorsFile] = []
        self._opened: list[SafetensorsFile] = []  # those that hold a file descriptor, oldest first
        self._lock = threading.Lock()  # of the list above
        self._holders: dict[str, SafetensorsFile] = {}
        try:
            self._open_all(location)
        except BaseException:
            self.close()
            raise

    def _open_all(self, location: Location) -> None:
        shards = self._shards
        for file in location.files:
            shard = SafetensorsFile(file)
            shards.append(shard)
            self._keep_open(shard)
            self.notes += shard.header.notes
            self._adopt(shard, location)
        self.metadata = shards[0].header.metadata
        for name, file in (location.weight_map or {}).items():
            if name not in self._holders:
                raise ModelError("the index names a tensor that its shard lacks", file=file, key=name)
        if len(shards) == 1 and is_bundle(self.metadata, self.files[0]):
            self.side_files: SideFiles = read_side_files(shards[0])
        else:
            self.side_files = FolderFiles(location.folder)
        self.tensors: Mapping[str, TensorInfo] = {
            name: shard.header.tensors[name] for name, shard in self._holders.items()
        }
        if not self.tensors:
            raise ModelError("holds no tensors", file=self.path)

    def _adopt(self, shard: SafetensorsFile, location: Location) -> None:
        """Take in the tensors of one shard that the index, where there is one, maps to it."""
        weight_map = location.weight_map
        unlisted = 0
        for name in shard.header.tensors:
            if is_bundled_name(name):
                continue
            if weight_map is not None and name not in weight_map:
                unlisted += 1
                continue
            if name in self._holders:
                where = f"{self._holders[name].path.name} and {shard.path.name}"
                raise ModelError(
                    "the tensor is in two shards", file=location.index or shard.path, key=name, found=where
                )
            if weight_map is not None and weight_map[name] != shard.path:
                held = shard.path.name
                raise ModelError("the index names another shard for it", file=location.index, key=name, found=held)
            self._holders[name] = shard
        if unlisted:
            self.notes.append(f"{shard.path.name}: {unlisted} tensors that the index does not name were ignored")

    def _keep_open(self, shard: SafetensorsFile) -> None:
        with self._lock:
            if shard in self._opened:
                self._opened.remove(shard)
            self._opened.append(shard)
            surplus = self._opened[:-MAX_OPEN_SHARDS]
            del self._opened[:-MAX_OPEN_SHARDS]
        for other in surplus:
            other.close()

    def info(self, name: str) -> TensorInfo:
        """What is stored under `name`. Raises `ModelError` where nothing is."""
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelError("the tensor is missing", file=self.path, key=name) from None

    def read(self, name: str) -> np.ndarray:
        """A fresh array of tensor `name` as stored; BF16 comes as uint16 bit patterns.

        Raises:
            ModelError: there is no such tensor, or its file changed or cannot be read.
            OutOfMemoryError: there is no memory for it.
        """
        self.info(name)
        shard = self._holders[name]
        self._keep_open(shard)
        return shard.read(name)

    def read_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows first..last-1 of tensor `name`, as `read` gives them and with its errors."""
        if not (info := self.info(name)).shape or not 0 <= first <= last <= info.shape[0]:
            found = f"rows {first} to {last} of {list(info.shape)}"
            raise UsageError("no such rows", file=info.file, key=name, found=found)
        shard = self._holders[name]
        self._keep_open(shard)
        return shard.read_rows(name, first, last)

    def read_float32(self, name: str) -> np.ndarray:
        """A fresh float32 array of an F32, F16 or BF16 tensor, exact. Raises as `read` does."""
        info = self.info(name)
        if info.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(FLOAT_DTYPES)
            raise ModelError("not a floating point tensor", file=info.file, key=name, found=info.dtype, allowed=allowed)
        stored = self.read(name)
        return bfloat16_to_float32(stored) if info.dtype == "BF16" else stored.astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the files. A later `read` opens them again, and fails where they were changed meanwhile."""
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a safetensors file, a folder, a sharded checkpoint (its folder, index or any shard) or a bundle.

    Raises:
        InputError: nothing is there, or it may not be read.
        ModelError: a file is damaged, hostile or of another kind.
    """
    return Checkpoint(path)
