"""Export a float16 checkpoint to OpenVINO int4 with optimum-intel and nncf; run in the environment "make".

    python -m tools.peers.openvino_model CHECKPOINT_FOLDER OUT_FOLDER

Linears are symmetric int4 in groups of 128, as the GPTQ checkpoint's are; embedding and head are what optimum makes of
them by default, int8. Beside the folder goes OUT_FOLDER.json with what a token reads, from the constants of the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

from tools.peers.command import model_parser

_OPTIONS = "--task text-generation-with-past --weight-format int4 --group-size 128 --ratio 1.0 --sym"
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
#: The CPU plugin keeps keys and values in 8 bits, with a float32 scale and zero point a head.
_CACHE = {"cache_item_bytes": 1, "cache_head_bytes": 8}


def export(folder: Path, out: Path) -> None:
    """Write the model, then the facts beside it."""
    from optimum.commands.optimum_cli import main as optimum

    sys.argv = ["optimum-cli", "export", "openvino", "-m", str(folder), *_OPTIONS.split(), str(out)]
    optimum()
    text = (out / "openvino_model.xml").read_text(encoding="utf-8")
    out.with_name(out.name + ".json").write_text(json.dumps({**weights_read(text), **_CACHE}), encoding="utf-8")


def weights_read(xml: str) -> dict[str, int | str]:
    """Bytes of constants that a token reads and the type of the head, from the text of openvino_model.xml.

    A head that is the embedding is one constant with it; of any other embedding a token reads one row.
    """
    total, embedding, rows, types = 0, 0, 1, {}
    for layer in ElementTree.fromstring(xml).iter("layer"):
        if layer.get("type") != "Const":
            continue
        data, name = layer.find("data"), layer.get("name", "")
        size = int(data.get("size"))
        total += size
        shape = [int(count) for count in data.get("shape", "").split(",") if count.strip()]
        part = next((part for part in (_EMBEDDING, _HEAD) if part in name), None)
        if part is None or len(shape) < 2:
            continue  # a scalar of the lookup may have the embedding's name
        if part == _EMBEDDING:
            embedding, rows = embedding + size, shape[0]
        if shape[-1] > 1:  # not the scales
            types[part] = data.get("element_type")
    if _HEAD not in types:
        return {"weight_bytes": total, "head": f"{types.get(_EMBEDDING)} (the embedding)"}
    return {"weight_bytes": total - embedding + embedding // rows, "head": types[_HEAD]}


def main() -> None:
    given = model_parser(__doc__).parse_args()
    export(given.folder, given.out)


if __name__ == "__main__":
    main()
