"""A whole model in one safetensors file: the single-file bundle.

Specification, version 1:

- The file is a valid safetensors file whose `__metadata__` has `"edgellm.bundle": "1"`.
- Each side file (config.json, tokenizer.json, tokenizer.model, chat_template.jinja ...) is a tensor named
  `edgellm.file/<name>` of dtype U8 and shape [number of bytes], holding the file's bytes unchanged. `<name>` matches
  `[A-Za-z0-9._-]+`, is neither "." nor "..", and is never used as a path. At most 64 files, 128 MiB together.
- Every other tensor is the model's, under the name and in the dtype it had in the checkpoint.
- What is inside wins: a reader of a bundle looks at no file beside it.
- A reader refuses a version that it does not know.

Side files are tensors and not metadata because a header is read whole before anything else: readers cap it (here at
16 MiB), the tokenizer.json of Llama 3 alone is 9 MB, and metadata holds text only while tokenizer.model is binary.
Readers that know nothing of bundles still open the file and see some more tensors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import ModelError, OutputError
from edgellm.formats.limits import MAX_BUNDLED_BYTES, MAX_BUNDLED_FILES
from edgellm.formats.writer import TensorSource, write_file
from edgellm.sidefiles import MemoryFiles, SideFiles

if TYPE_CHECKING:
    from edgellm.formats.checkpoint import Checkpoint
    from edgellm.formats.reader import SafetensorsFile

VERSION_KEY = "edgellm.bundle"
VERSION = "1"
PREFIX = "edgellm.file/"

_NAME = re.compile(r"[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*")  # "." and ".." are none
_SIDE_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|quantize_config|quant_config|quantization_config|chat_template)\.json"
    r"|tokenizer\.model|merges\.txt|[A-Za-z0-9._-]+\.jinja|(README|LICENSE|NOTICE)(\.md|\.txt)?"
)


def is_bundle(metadata: dict[str, str], file: str | os.PathLike[str]) -> bool:
    """Whether a file with this metadata is a bundle. Raises `ModelError` for a version from the future."""
    version = metadata.get(VERSION_KEY)
    if version not in (None, VERSION):
        raise ModelError("unknown bundle version", file=file, key=VERSION_KEY, found=version, allowed=VERSION)
    return version is not None


def is_bundled_name(tensor: str) -> bool:
    """Whether a tensor of this name is a side file."""
    return tensor.startswith(PREFIX)


def is_side_file(name: str) -> bool:
    """Whether a file of a model's folder belongs to the model: what bundles carry and converters copy."""
    return _SIDE_FILES.fullmatch(name) is not None


def read_side_files(file: SafetensorsFile) -> MemoryFiles:
    """The side files inside a bundle. Raises `ModelError`."""
    infos = [info for name, info in file.header.tensors.items() if is_bundled_name(name)]
    if len(infos) > MAX_BUNDLED_FILES:
        found, allowed = len(infos), str(MAX_BUNDLED_FILES)
        raise ModelError("too many files in the bundle", file=file.path, found=found, allowed=allowed)
    total = sum(info.nbytes for info in infos)
    if total > MAX_BUNDLED_BYTES:
        found, allowed = f"{total:,} bytes", f"{MAX_BUNDLED_BYTES:,}"
        raise ModelError("the files in the bundle are too large", file=file.path, found=found, allowed=allowed)
    files = {}
    for info in infos:
        name = info.name.removeprefix(PREFIX)
        if not _NAME.fullmatch(name):
            raise ModelError("not a plain file name", file=file.path, key=info.name)
        if info.dtype != "U8" or len(info.shape) != 1:
            found = f"{info.dtype} {list(info.shape)}"
            raise ModelError("a bundled file must be U8 of one dimension", file=file.path, key=info.name, found=found)
        files[name] = file.read(info.name).tobytes()
    return MemoryFiles(files, file.path)


def write_bundle(source: str | os.PathLike[str] | Checkpoint, out_path: str | os.PathLike[str]) -> Path:
    """Write `source` (a folder, a file with its side files beside it, or an open checkpoint) as one file.

    Tensors are copied one at a time. The bundle appears under its name only when it is whole.

    Returns:
        `out_path`.

    Raises:
        InputError, ModelError: the source cannot be read, or has no config.json.
        OutputError: the bundle cannot be written, or would overwrite its own source.
    """
    from edgellm.formats.checkpoint import Checkpoint, open_checkpoint

    if not isinstance(source, Checkpoint):
        with open_checkpoint(source) as checkpoint:
            return write_bundle(checkpoint, out_path)
    out_path = Path(out_path)
    for file in source.files:
        if out_path.exists() and os.path.samefile(file, out_path):
            raise OutputError("would overwrite its own source", file=out_path)
    sources = {name: _copy_of(source, name) for name in source.tensors}
    files = _collect(source.side_files)
    if "config.json" not in files:
        raise ModelError("a bundle needs a config.json", file=source.side_files.locate("config.json"))
    for name, data in files.items():
        sources[PREFIX + name] = TensorSource.of_bytes(data)
    write_file(out_path, sources, {**source.metadata, "format": "pt", VERSION_KEY: VERSION})
    return out_path


def _collect(side_files: SideFiles) -> dict[str, bytes]:
    files = {}
    for name in side_files.names():
        data = side_files.read(name) if is_side_file(name) else None
        if data is not None:
            files[name] = data
    return files


def _copy_of(checkpoint: Checkpoint, name: str) -> TensorSource:
    info = checkpoint.tensors[name]
    return TensorSource(info.dtype, info.shape, lambda: checkpoint.read(name))
