"""From what a person names to the safetensors files it means.

A file, a folder, the index of a sharded checkpoint, or one of its shards. Names taken from inside an index are never
paths: each must be a plain `*.safetensors` name in the folder of the index.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import InputError, ModelError
from edgellm.formats.hints import SUFFIXES
from edgellm.formats.limits import MAX_INDEX_BYTES, MAX_SHARDS, MAX_TENSORS
from edgellm.jsonfile import parse_json, read_bytes

INDEX_NAME = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_PARTIAL = re.compile(r"\.partial(-|$)")


@dataclass(frozen=True)
class Location:
    """Where the weights of one checkpoint lie.

    Attributes:
        files: the safetensors files, in order.
        folder: where config.json and the tokenizer are looked for.
        weight_map: file of each tensor where an index says so, else None.
        index: path of that index.
    """

    files: list[Path]
    folder: Path
    weight_map: dict[str, Path] | None = None
    index: Path | None = None


def locate(path: str | os.PathLike[str]) -> Location:
    """Find the safetensors files that `path` means.

    Raises:
        InputError: nothing is there, or it is an address or "-".
        ModelError: it is something else than a safetensors checkpoint, or its index is refused.
    """
    named = _existing(path)
    if _PARTIAL.search(named.name):
        raise ModelError("an unfinished conversion", file=named, hint="Run the conversion again, then delete this.")
    if named.is_dir():
        return _locate_in_folder(named)
    if named.name.endswith(".index.json"):
        return read_index(named)
    suffix = named.suffix.lower()
    if suffix in SUFFIXES:
        what, hint = SUFFIXES[suffix]
        raise ModelError(what, file=named, hint=hint)
    index = named.parent / INDEX_NAME
    if _NUMBERED.fullmatch(named.name) and os.path.lexists(index):
        location = read_index(index)
        if named in location.files:
            return location
    return Location([named], named.parent)


def _existing(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if "://" in text:
        raise InputError("addresses are not opened", file=text, hint="Download the model and name its folder.")
    if text in ("", "-"):
        raise InputError(
            "a model cannot be read from standard input", file=text or "''", hint="Name a file or a folder."
        )
    try:
        os.stat(text)
    except FileNotFoundError:
        what = "a symbolic link to nothing" if os.path.islink(text) else "no such file or folder"
        raise InputError(what, file=text) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=text) from None
    return Path(text)


def _locate_in_folder(folder: Path) -> Location:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot be read ({error})", file=folder) from None
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    if INDEX_NAME in indices or len(indices) == 1:
        return read_index(folder / (INDEX_NAME if INDEX_NAME in indices else indices[0]))
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights == ["adapter_model.safetensors"]:
        raise ModelError("a LoRA adapter, not a model", file=folder, hint="Merge it into its base model first.")
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if len(weights) == 1:
        return Location([folder / weights[0]], folder)
    if weights and _is_whole_set(weights):
        return Location([folder / name for name in weights], folder)
    if weights:
        raise ModelError(
            f"holds {len(weights)} safetensors files and no index", file=folder, hint="Name the file that is meant."
        )
    hint = "Name the folder that holds config.json and *.safetensors."
    for name in names:
        if Path(name).suffix.lower() in (".gguf", ".bin", ".pt", ".pth"):
            what, hint = SUFFIXES[Path(name).suffix.lower()]
            hint = f"{name}: {what}. {hint}"
            break
    raise ModelError("a folder without safetensors files", file=folder, hint=hint)


def _is_whole_set(names: list[str]) -> bool:
    """Whether `names` are all of one numbered set, X-00001-of-0000N to X-0000N-of-0000N."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    if not all(parts) or len(names) > MAX_SHARDS:
        return False
    sets = {(part["stem"], part["total"]) for part in parts if part}
    return len(sets) == 1 and int(next(iter(sets))[1]) == len(names)


def read_index(path: Path) -> Location:
    """The shards that an index file names; `metadata` in it is not believed, nor needed.

    Raises:
        InputError: the index is not there.
        ModelError: it is refused, or a shard it names is missing or not a regular file.
    """
    data = read_bytes(path, MAX_INDEX_BYTES)
    if data.count(b",") > MAX_TENSORS + 1024:
        raise ModelError("too many tensors", file=path, found=f"{data.count(b','):,}", allowed=f"{MAX_TENSORS:,}")
    weight_map = parse_json(data, path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError("must be a non-empty object", file=path, key="weight_map", found=type(weight_map).__name__)
    shards: dict[str, Path] = {}
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in shards:
            continue
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise ModelError(
                "not the name of a shard",
                file=path,
                key=f"weight_map.{tensor}",
                found=repr(name),
                allowed="a plain *.safetensors file name",
            )
        if len(shards) == MAX_SHARDS:
            raise ModelError("too many shards", file=path, key="weight_map", allowed=str(MAX_SHARDS))
        shards[name] = path.parent / name
    for name, shard in shards.items():
        try:
            regular = stat.S_ISREG(os.stat(shard).st_mode)
        except OSError:
            raise ModelError("a shard named in the index is missing", file=path, key=name) from None
        if not regular:
            raise ModelError("a shard named in the index is not a regular file", file=path, key=name)
    files = [shards[name] for name in sorted(shards)]
    return Location(files, path.parent, {tensor: shards[name] for tensor, name in weight_map.items()}, path)
