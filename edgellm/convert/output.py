"""The checkpoint being written: files of their final size, aside, whose tensors are filled in any order.

Every tensor's dtype and shape, hence its place, is known before the first weight is quantized; so each is written once,
where it stays, and a run that was killed goes on in the same files. The folder is `<out>.partial-convert`, which
no reader takes for a model; it takes its name when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np

from edgellm.errors import OutputError
from edgellm.formats.locate import INDEX_NAME
from edgellm.formats.writer import (
    TensorSource,
    bytes_of,
    check_free,
    check_names,
    failures,
    index_of,
    lay_out,
    plan_shards,
    replace_folder,
    require_space,
    write_side_files,
)

SUFFIX = ".partial-convert"
_READ_BYTES = 1 << 20
#: Written between two requests to the system to begin bringing it to the disk.
_SYNC_BYTES = 64 << 20


class StagedOutput:
    """The output's files while they are filled.

    Args:
        out: the folder it becomes.
        sources: dtype and shape of every tensor by name, in order; their `load` is not used.
        max_shard_bytes: of a file.
        resume: go on with files that are there; without it they are made anew.

    Raises:
        OutputError: no space, or it cannot be written.
    """

    def __init__(
        self, out: Path, sources: Mapping[str, TensorSource], *, max_shard_bytes: int, resume: bool = False
    ) -> None:
        self.out = out
        self.folder = staging_folder(out)
        self._sources = sources
        self._shards = plan_shards(sources, max_shard_bytes)
        self._places: dict[str, tuple[str, int]] = {}
        self._files: dict[str, FileIO] = {}
        self._unsynced = 0
        self._syncing = ThreadPoolExecutor(1)
        self._sync: Future[None] | None = None
        with failures(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                require_space(self.folder / "model", sum(source.nbytes for source in sources.values()))
            try:
                for name, shard in self._shards.items():
                    self._open(name, shard)
            except BaseException:
                self.close()
                raise

    def _open(self, file: str, shard: Mapping[str, TensorSource]) -> None:
        opening, begins = lay_out(self.folder / file, shard, None)
        path = self.folder / file
        stream = self._files[file] = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        _allocate(stream, max((begins[name] + shard[name].nbytes for name in shard), default=len(opening)))
        _write_all(stream, memoryview(opening), 0)
        self._places.update({name: (file, begin) for name, begin in begins.items()})

    def write(self, name: str, array: np.ndarray) -> None:
        """Fill tensor `name`. Raises `UsageError` where it is not what was announced, `OutputError`."""
        source = self._sources[name]
        data = bytes_of(name, TensorSource(source.dtype, source.shape, lambda: array))
        file, begin = self._places[name]
        with failures(self.folder / file):
            _write_all(self._files[file], data, begin)
            self._unsynced += len(data)
            if self._unsynced >= _SYNC_BYTES:
                self._begin_sync()

    def _begin_sync(self) -> None:
        """Let the disk begin while the next tensors are computed; what it reports is raised by a later one."""
        if self._sync is not None and not self._sync.done():
            return
        if self._sync is not None:
            self._sync.result()
        self._unsynced = 0
        self._sync = self._syncing.submit(self._sync_files)

    def _sync_files(self) -> None:
        for stream in self._files.values():
            os.fsync(stream.fileno())

    def digest(self, names: Iterable[str]) -> str:
        """sha256 of the bytes that stand in the files for these tensors."""
        digest = hashlib.sha256()
        for name in names:
            file, begin = self._places[name]
            end = begin + self._sources[name].nbytes
            stream = self._files[file]
            with failures(self.folder / file):
                stream.seek(begin)
                while begin < end:
                    block = stream.read(min(_READ_BYTES, end - begin))
                    if not block:
                        raise OutputError("was cut short by somebody else", file=self.folder / file)
                    digest.update(block)
                    begin += len(block)
        return digest.hexdigest()

    def flush(self) -> None:
        """Have all that was written on the disk."""
        with failures(self.folder):
            if self._sync is not None:
                self._sync.result()
                self._sync = None
            self._sync_files()
        self._unsynced = 0

    def finish(self, side_files: Mapping[str, bytes], *, keep: Iterable[str] = (), overwrite: bool = False) -> None:
        """Write the side files, remove what else lies in the folder, and give it its name.

        Args:
            side_files: bytes by plain name; config.json is written last.
            keep: names of other files that belong to the output.
            overwrite: replace what has the name.
        """
        check_names(side_files)
        with failures(self.out):
            check_free(self.out, overwrite)
            self.flush()
            self.close()
            write_side_files(self.folder, side_files, index_of(self._shards))
            wanted = {*self._shards, *side_files, *keep, INDEX_NAME}
            for entry in self.folder.iterdir():
                if entry.name not in wanted:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            replace_folder(self.folder, self.out)

    def close(self) -> None:
        """Close the files; what was written stays."""
        self._syncing.shutdown()
        for stream in self._files.values():
            stream.close()
        self._files = {}


def staging_folder(out: Path) -> Path:
    """Where the output is built."""
    return out.with_name(out.name + SUFFIX)


def _allocate(stream: FileIO, size: int) -> None:
    """Give the file its size; the space itself too where the system can, so that a full disk shows now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, max(size, 1))
    stream.truncate(size)


def _write_all(stream: FileIO, data: memoryview, begin: int) -> None:
    stream.seek(begin)
    while data:
        data = data[stream.write(data) :]
