"""Options of `edgellm convert` that say what goes before anything is quantized."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

#: By the key of a recipe's [prune].
_OPTIONS = {
    "ffn": "prune_ffn", "kv_groups": "prune_kv_groups", "layers": "prune_layers", "vocabulary": "prune_vocabulary",
    "refit": "refit",
}  # fmt: skip


def add_pruning(parser: argparse.ArgumentParser) -> None:
    """--prune and its kin."""
    group = parser.add_argument_group(
        "pruning, before quantizing; without --bits and other options of quantization it is all that is done"
    )
    group.add_argument("--prune", action="store_true", default=None, help="take out a fifth of the FFN channels")
    group.add_argument(
        "--prune-ffn", metavar="SHARE|WIDTH", type=share_or_count, help="share of the FFN channels that goes (0.2), "
        "or the width that stays"
    )  # fmt: skip
    group.add_argument(
        "--prune-kv-groups", metavar="N", type=share_or_count, help="KV heads that go in each layer, with their query "
        "heads; below 1 a share"
    )  # fmt: skip
    group.add_argument(
        "--prune-layers", metavar="N|A,B,..", type=layers, help="how many layers go, the least useful, or which"
    )
    group.add_argument(
        "--prune-vocabulary", metavar="CORPUS", action="append", default=[], help="keep the tokens that this text or "
        ".jsonl needs; may be repeated"
    )  # fmt: skip
    group.add_argument(
        "--refit",
        choices=("source", "layer", "none"),
        help="weights behind a cut make up for it, and for what went before (source), for the cut alone (layer)",
    )


def pruning_of(args: Namespace, recipe: Mapping[str, Any]) -> Any:
    """What the options ask for over a recipe's [prune]: a table, true for --prune alone, None for neither."""
    given = {key: getattr(args, name) for key, name in _OPTIONS.items() if getattr(args, name) not in (None, [])}
    before = recipe.get("prune")
    if not given:
        return before or args.prune
    return {**(before if isinstance(before, Mapping) else {}), **given}


def share_or_count(text: str) -> float | int:
    """A whole number, or a share such as 0.25 or 25%; argparse names the option."""
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(text) if "." in text else int(text.replace("_", ""))


def layers(text: str) -> int | tuple[int, ...]:
    """How many layers, or their numbers with commas; argparse names the option."""
    return tuple(int(part) for part in text.split(",") if part) if "," in text else int(text)
