"""tokenizer.json with fewer tokens: BPE merges kept closed, ids numbered anew wherever the file names them.

A token's derivation is what its own merges make of its characters. Text whose tokens are all kept is cut as before:
every merge that happens in it is one of a kept token's derivation, and merges that go never happened there.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from edgellm.errors import TokenizerError

Merge = tuple[str, str]
_POST_PROCESSORS = ("ByteLevel", "TemplateProcessing", "Sequence", "BertProcessing", "RobertaProcessing")


def closed_tokens(values: Mapping[str, Any], used: Iterable[int], file: str) -> set[int]:
    """Ids that must stay for the ids `used`: their derivations, all single characters or bytes, and added tokens.

    Args:
        values: tokenizer.json. used: ids. file: named in errors.

    Raises:
        TokenizerError: not a BPE that can be cut.
    """
    model = _model(values, file)
    vocab: dict[str, int] = model["vocab"]
    texts = {token_id: text for text, token_id in vocab.items()}
    ranks = {merge: rank for rank, merge in reversed([*enumerate(_merges(model))])}
    added = {token["id"] for token in values.get("added_tokens") or ()}
    keep = {*added, *used}
    if model.get("unk_token") in vocab:
        keep.add(vocab[model["unk_token"]])
    by_bytes = bool(model.get("byte_fallback"))
    keep |= {i for text, i in vocab.items() if (_is_byte(text) if by_bytes else len(text) == 1)}
    for token_id in [token_id for token_id in keep if token_id in texts]:
        if not (by_bytes and _is_byte(texts[token_id])):
            keep |= {vocab[part] for part in derivation(texts[token_id], ranks) if part in vocab}
    return keep


def derivation(text: str, ranks: Mapping[Merge, int]) -> set[str]:
    """Every symbol on the way from the characters of `text` to what the merges make of them."""
    symbols = list(text)
    seen = set(symbols)
    while len(symbols) > 1:
        pairs = [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not pairs:
            return seen
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        seen.add(symbols[at])
    return seen


def cut_tokenizer(values: Mapping[str, Any], new_ids: Mapping[int, int], file: str) -> dict[str, Any]:
    """tokenizer.json with only the ids of `new_ids` (old: new). Raises `TokenizerError`."""
    found = copy.deepcopy(dict(values))
    model = _model(found, file)
    kept = {text: new_ids[token_id] for text, token_id in model["vocab"].items() if token_id in new_ids}
    model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    pairs = [pair for pair in _merges(model) if all(part in kept for part in (*pair, "".join(pair)))]
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    model["merges"] = [" ".join(pair) for pair in pairs] if as_text else [list(pair) for pair in pairs]
    for token in found.get("added_tokens") or ():
        token["id"] = new_ids[token["id"]]
    _renumber_post_processor(found.get("post_processor"), new_ids, file)
    found["truncation"] = found["padding"] = None
    return found


def _model(values: Mapping[str, Any], file: str) -> dict[str, Any]:
    model = values.get("model") or {}
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        hint = "Pieces of other kinds are chosen by probabilities of the whole vocabulary: cutting it changes any text."
        raise TokenizerError(
            "its vocabulary cannot be cut", file=file, key="model.type", found=kind, allowed="BPE", hint=hint
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError("its vocabulary cannot be cut", file=file, key=f"model.{key}", found=model[key])
    return model


def _merges(model: Mapping[str, Any]) -> list[Merge]:
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _renumber_post_processor(node: Any, new_ids: Mapping[int, int], file: str) -> None:
    if not isinstance(node, dict):
        return
    if node.get("type") not in _POST_PROCESSORS:
        allowed = ", ".join(_POST_PROCESSORS)
        raise TokenizerError(
            "unknown post-processor", file=file, key="post_processor.type", found=node.get("type"), allowed=allowed
        )
    for step in node.get("processors") or ():
        _renumber_post_processor(step, new_ids, file)
    special = node.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        token["ids"] = [new_ids[token_id] for token_id in token["ids"]]
    for key in ("sep", "cls"):
        if key in node:
            node[key] = [node[key][0], new_ids[node[key][1]]]
