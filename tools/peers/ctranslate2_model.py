"""Convert a float16 checkpoint to CTranslate2 int8; run in the environment "make".

    python -m tools.peers.ctranslate2_model CHECKPOINT_FOLDER OUT_FOLDER

The converter is CTranslate2's own. Its vocabulary is spelled anew, a token as its id: CTranslate2 takes no ids for
prompts. Beside the folder goes OUT_FOLDER.json with what a token reads, from the variables of model.bin.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tools.peers.command import model_parser

#: Names of the types that model.bin numbers.
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_EMBEDDING, _HEAD = "decoder/embeddings/weight", "decoder/projection/weight"


def convert(folder: Path, out: Path) -> None:
    """Write the model, then the facts beside it."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder), load_as_float16=True, low_cpu_mem_usage=True).convert(
        str(out), quantization="int8", force=True
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (out / "vocabulary.json").write_text(json.dumps([str(i) for i in range(config["vocab_size"])]), encoding="utf-8")
    path = out / "config.json"
    own = json.loads(path.read_text(encoding="utf-8"))
    start, end = str(config["bos_token_id"]), str(config["eos_token_id"])
    path.write_text(json.dumps({**own, "bos_token": start, "unk_token": start, "eos_token": end}), encoding="utf-8")
    with (out / "model.bin").open("rb") as file:
        sizes = {name: (kind, nbytes, rows) for name, kind, nbytes, rows in variables(file)}
    read = sum(nbytes for _, nbytes, _ in sizes.values())
    head = sizes.get(_HEAD)
    if head is not None:
        read -= sizes[_EMBEDDING][1] - sizes[_EMBEDDING][1] // sizes[_EMBEDDING][2]
    kind = (head or sizes[_EMBEDDING])[0] + ("" if head else " (the embedding)")
    # compute type int8 computes attention, and keeps keys and values, in float32
    facts = {"weight_bytes": read, "head": kind, "cache_item_bytes": 4, "cache_head_bytes": 0}
    out.with_name(out.name + ".json").write_text(json.dumps(facts), encoding="utf-8")


def variables(file: BinaryIO) -> Iterator[tuple[str, str, int, int]]:
    """(name, type, bytes, rows) of every variable of a model.bin that is stored and not an alias of another."""
    struct.unpack("<I", file.read(4))
    _text(file)
    struct.unpack("<I", file.read(4))
    (count,) = struct.unpack("<I", file.read(4))
    for _ in range(count):
        name = _text(file)
        (rank,) = struct.unpack("<B", file.read(1))
        shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
        kind, nbytes = struct.unpack("<BI", file.read(5))
        file.seek(nbytes, 1)
        yield name, _TYPES[kind], nbytes, shape[0] if shape else 1


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length).rstrip(b"\0").decode()


def main() -> None:
    given = model_parser(__doc__).parse_args()
    convert(given.folder, given.out)


if __name__ == "__main__":
    main()
