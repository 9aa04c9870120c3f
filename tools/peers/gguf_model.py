"""Write a GGUF file of random blocks at the shapes of a synthetic checkpoint; run in llama.cpp's environment.

    python -m tools.peers.gguf_model CHECKPOINT_FOLDER OUT.gguf --mix q4_k_m

The folder gives config.json and tokenizer.json: the same vocabulary is as slow to load for everybody. Written tensor
by tensor. Beside the file goes OUT.json with what a token reads, from the types and shapes of the file just written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tools.peers.command import model_parser
from tools.peers.random_blocks import RandomBlocks
from tools.peers.tensor_types import BLOCKS, MIXES, GGUFTensor, gguf_tensors, head_of, read_bytes

_NORMAL_TOKEN, _CONTROL_TOKEN = 1, 3
_BIAS_SPREAD = 0.1


def write(folder: Path, path: Path, mix: str) -> None:
    """Write the file, then the facts beside it."""
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = gguf_tensors(config, mix)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, config["model_type"], use_temp_file=False)
    _add_config(writer, config, f"{config['_name_or_path']}, random weights")
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), config)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        # the shape of the bytes, from which the writer derives the shape of the elements
        elements, size = BLOCKS[tensor.type]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // elements * size)
        if tensor.type in ("F32", "F16"):
            dtype = np.dtype(np.float32 if tensor.type == "F32" else np.float16)
            writer.add_tensor_info(tensor.name, tensor.shape, dtype, tensor.nbytes)
        else:
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    _write_data(writer.fout[0], tensors, writer.data_alignment)
    writer.close()
    partial.replace(path)
    path.with_suffix(".json").write_text(json.dumps(facts(config, tensors)), encoding="utf-8")


def facts(config: dict[str, Any], tensors: list[GGUFTensor]) -> dict[str, Any]:
    """What a token reads and what the head is stored as; keys and values are float16 by default."""
    tied = " (the embedding)" if config.get("tie_word_embeddings") else ""
    return {
        "weight_bytes": read_bytes(tensors),
        "head": head_of(tensors).type + tied,
        "cache_item_bytes": 2,
        "cache_head_bytes": 0,
    }


def _write_data(file: Any, tensors: list[GGUFTensor], alignment: int) -> None:
    """The tensors in the order of their infos, each padded as its offset in the header says."""
    file.write(b"\0" * (-file.tell() % alignment))
    blocks = RandomBlocks()
    for tensor in tensors:
        spread = tensor.shape[-1] ** -0.5 if len(tensor.shape) == 2 else _BIAS_SPREAD
        for part in blocks.parts(tensor, spread):
            file.write(part)
        file.write(b"\0" * (-tensor.nbytes % alignment))


def _add_config(writer: Any, config: dict[str, Any], name: str) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    model = tokenizer["model"]
    words = [word for word, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    special = {entry["id"] for entry in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([_CONTROL_TOKEN if number in special else _NORMAL_TOKEN for number in range(len(words))])
    writer.add_token_merges(model["merges"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--mix", choices=MIXES, default="q4_k_m")
    given = parser.parse_args()
    write(given.folder, given.out, given.mix)


if __name__ == "__main__":
    main()
