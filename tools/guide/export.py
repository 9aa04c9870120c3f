"""Write a training run as a Hugging Face folder: float16 weights, config, tokenizer, template.

    python -m tools.guide.export RUN FLOAT16

quantize.toml beside this file makes the published 4-bit model of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tools.guide.decode import load_run
from tools.guide.vocabulary import Vocabulary, tokenizer_config


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config(shape: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """config.json of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **shape,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.end,
        "torch_dtype": "float16",
    }


def export(run: Path, out: Path) -> None:
    """Write everything but the card."""
    model, vocabulary, record = load_run(run)
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.float16).contiguous() for name, weight in model.state_dict().items()}
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise ValueError("a weight does not fit float16")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # the library writes it for its owner alone
    shape = record["shape"]
    _write_json(out / "config.json", model_config(shape, vocabulary))
    ids = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.end}
    _write_json(out / "generation_config.json", {**ids, "do_sample": False})
    _write_json(out / "tokenizer_config.json", tokenizer_config(shape["max_position_embeddings"]))
    shutil.copyfile(run / "tokenizer.model", out / "tokenizer.model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    export(args.run, args.out)


if __name__ == "__main__":
    main()
