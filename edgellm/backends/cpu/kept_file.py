"""Packed weights as a safetensors file, so that the next start takes them as they are.

    arena               uint64, the arena's bytes in use; begins at a multiple of `_ALIGNMENT` in the file
    sums                uint64, of each piece of `PIECE_WORDS` of the arena the sum of its words
    permutation.N       int32, the N-th that a linear names
    __metadata__.packed what lies where, as JSON

Where the system keeps the file in large pages it is mapped, which costs no memory beside its own cache; else it is read
into an arena of large pages, since decode reads small ones up to a quarter slower.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.layout import ALIGNMENT, LinearKind, LinearLayout
from edgellm.backends.cpu.mapped import in_large_pages, map_file
from edgellm.backends.cpu.packed import PackedLinear, PackedWeights
from edgellm.backends.cpu.packing_jobs import PackingJobs
from edgellm.backends.interface import Progress
from edgellm.errors import ModelError
from edgellm.formats import TensorSource, write_file
from edgellm.formats.reader import SafetensorsFile
from edgellm.formats.writer import lay_out

_WORD_BYTES = 8
#: Summed, and read where it is read, at a time.
PIECE_WORDS = (32 << 20) // _WORD_BYTES
_ALIGNMENT = 4096
_PACKED, _PAD = "packed", "pad"


def write_kept(path: Path, packed: PackedWeights) -> None:
    """Write `packed`, aside first. Raises `OutputError`."""
    words = packed.data[: packed.nbytes].view(np.uint64)
    tensors = {"arena": words, "sums": np.array([_sum(piece) for piece in _pieces(words)], np.uint64)}
    linears: dict[str, dict[str, Any]] = {}
    for name, linear in packed.linears.items():
        described = {"offset": linear.offset, "factor": linear.factor, "bias": linear.bias, "permutation": None}
        if linear.permutation is not None:
            described["permutation"] = f"permutation.{len(tensors)}"
            tensors[described["permutation"]] = linear.permutation.astype(np.int32)
        linears[name] = described | {"layout": asdict(linear.layout)}
    metadata = {_PACKED: json.dumps({"linears": linears, "vectors": packed.vectors}), _PAD: ""}
    sources = {name: TensorSource.of(tensor, name) for name, tensor in tensors.items()}
    begin = lay_out(path, sources, metadata)[1]["arena"]
    write_file(path, sources, metadata | {_PAD: " " * (-begin % _ALIGNMENT)})


def read_kept(path: Path, progress: Progress | None, threads: int) -> PackedWeights:
    """What `write_kept` wrote, looked at by `threads` threads; `progress` is told of the bytes.

    Raises:
        InputError: there is no such file.
        ModelError: it is damaged.
        OutOfMemoryError: there is no memory for it.
    """
    file = SafetensorsFile(path)
    try:
        nbytes = file.header.tensors["arena"].nbytes
        sums = file.read("sums")
        if len(sums) != -(-nbytes // (PIECE_WORDS * _WORD_BYTES)):
            raise ModelError("the sums do not fit the arena", file=path, key="sums", found=len(sums))
        begin = file.begin("arena")
        data = map_file(path, begin, nbytes) if begin % ALIGNMENT == 0 else None
        if data is not None:
            _look(file, data, sums, threads, progress)
            if not in_large_pages(data, begin):
                data = progress = None  # unmapped; what comes now is a copy of what has been read
        if data is None:
            data = Arena(nbytes).bytes
            _look(file, data, sums, threads, progress, read=True)
        return _described(file, data)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"not packed weights ({error!r})", file=path) from None
    finally:
        file.close()


def _look(
    file: SafetensorsFile,
    data: np.ndarray,
    sums: np.ndarray,
    threads: int,
    progress: Progress | None,
    *,
    read: bool = False,
) -> None:
    """Compare the sums of the arena `data` in pieces, which are read into it first where told. Raises `ModelError`."""

    def look(number: int, piece: np.ndarray) -> None:
        if read:
            file.read_into("arena", number * PIECE_WORDS * _WORD_BYTES, piece.view(np.uint8))
        if _sum(piece) != sums[number]:
            raise ModelError("the bytes are not those that were written", file=file.path, key=f"piece {number}")

    with PackingJobs(threads, progress, data.nbytes) as jobs:
        for number, piece in enumerate(_pieces(data.view(np.uint64))):
            jobs.submit(piece.nbytes, partial(look, number, piece))


def _described(file: SafetensorsFile, data: np.ndarray) -> PackedWeights:
    table = json.loads(file.header.metadata[_PACKED])
    linears = {}
    for name, described in table["linears"].items():
        shape = described["layout"]
        kinds = {"kind": LinearKind(shape["kind"]), "rest": tuple(map(LinearKind, shape["rest"]))}
        layout = LinearLayout(**{**shape, **kinds})
        permutation = described["permutation"]
        order = None if permutation is None else file.read(permutation)
        linears[name] = PackedLinear(layout, described["offset"], described["factor"], described["bias"], order)
        if not 0 <= described["offset"] <= len(data) - layout.nbytes:
            raise ModelError("lies outside of the arena", file=file.path, key=name, found=described["offset"])
    return PackedWeights(data, len(data), linears, table["vectors"])


def _pieces(words: np.ndarray) -> list[np.ndarray]:
    return [words[begin : begin + PIECE_WORDS] for begin in range(0, len(words), PIECE_WORDS)]


def _sum(piece: np.ndarray) -> np.uint64:
    return np.add.reduce(piece, dtype=np.uint64)
