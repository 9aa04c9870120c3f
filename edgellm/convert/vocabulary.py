"""A vocabulary cut to what a corpus needs: rows of the embedding and lm_head go, and the tokenizer is written anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert import vocabulary_json, vocabulary_spm
from edgellm.convert.documents import encode_document, read_documents
from edgellm.errors import ModelError, TokenizerError
from edgellm.formats import TensorSource, is_side_file, save_checkpoint
from edgellm.jsonfile import parse_json
from edgellm.model import OpenedModel
from edgellm.sidefiles import MAX_SIDE_FILE_BYTES, MemoryFiles, read_side_json
from edgellm.text import Tokenizer, load_chat_template, load_tokenizer

_JSON, _SPM = "tokenizer.json", "tokenizer.model"
#: Other forms of a tokenizer, which would no longer agree with the one that was cut.
_STALE = ("vocab.json", "merges.txt", "vocab.txt")
_SAMPLES = (
    "Hello, world! 0123456789",
    "\n\n\tdef f(x):\n    return x ** 2  # ½ ≠ ∞",
    "Straße, naïve, Ελληνικά, русский, 日本語, 한국어, العربية, 🙂👩‍👩‍👧",
    "".join(map(chr, range(32, 127))),
)


@dataclass(frozen=True)
class VocabularyReport:
    """What went.

    Attributes:
        kept, of: ids. used: ids that the corpus uses; the others are kept for their sake, or to spell any text.
        corpus_tokens: ids of the corpus, whose cutting is unchanged.
        nbytes, nbytes_before: of all tensors.
        kept_ids: old ids in the order of the new ones, int64 [kept].
    """

    kept: int
    of: int
    used: int
    corpus_tokens: int
    nbytes: int
    nbytes_before: int
    kept_ids: np.ndarray


def prune_vocabulary(
    opened: OpenedModel,
    corpus: Sequence[str | os.PathLike[str]],
    out: str | Path,
    *,
    progress: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> VocabularyReport:
    """Write the model with only the tokens that `corpus` needs, all bytes or characters, and all special tokens.

    The corpus is cut into the same tokens as before, which is checked piece by piece, as is that other text comes back
    as it went in. Text beyond the corpus is spelled in smaller tokens than the source would use.

    Args:
        opened: the source, its embedding and lm_head in floating point.
        corpus: texts or JSONL, see `documents`.
        out: see `formats.save_checkpoint`.
        progress: called with the ids of each piece of the corpus, read twice.
        overwrite: replace what is at `out`.

    Raises:
        TokenizerError: a tokenizer that cannot be cut (BPE of tokenizer.json or tokenizer.model can).
        ModelError: the embedding is quantized. InputError: a text of the corpus cannot be read.
        OutputError: nothing can be written there.
    """
    tokenizer = load_tokenizer(opened.side_files, vocab_size=opened.config.vocab_size)
    counts = np.zeros(opened.config.vocab_size, np.int64)
    for ids in _corpus(opened, tokenizer, corpus):
        counts += np.bincount(ids, minlength=len(counts))
        if progress is not None:
            progress(len(ids))
    used = np.flatnonzero(counts)
    kept = np.array(sorted(_closed(opened, {*used.tolist(), *_named_ids(opened, tokenizer)})), np.int64)
    new_ids = {int(old): new for new, old in enumerate(kept)}
    side = _side_files(opened, new_ids)
    _check_cut(opened, tokenizer, corpus, side, new_ids, progress)
    tensors = _tensors(opened, kept)
    save_checkpoint(tensors, out, side_files=side, overwrite=overwrite)
    return VocabularyReport(
        kept=len(kept),
        of=opened.config.vocab_size,
        used=len(used),
        corpus_tokens=int(counts.sum()),
        nbytes=sum(source.nbytes for source in tensors.values()),
        nbytes_before=sum(info.nbytes for info in opened.checkpoint.tensors.values()),
        kept_ids=kept,
    )


def _corpus(opened: OpenedModel, tokenizer: Tokenizer, paths: Sequence[str | os.PathLike[str]]) -> Iterator[list[int]]:
    template = load_chat_template(opened.side_files, tokenizer)
    for path in paths:
        for document in read_documents(path):
            yield from encode_document(tokenizer, template, document, path)


def _named_ids(opened: OpenedModel, tokenizer: Tokenizer) -> set[int]:
    """Ids that config files name, and all added tokens."""
    found = {token.id for token in tokenizer.added_tokens} | set(tokenizer.prefix_ids)
    for name in ("config.json", "generation_config.json"):
        for key, value in (read_side_json(opened.side_files, name) or {}).items():
            if _names_ids(key):
                found |= {i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0}
    return {token_id for token_id in found if token_id < opened.config.vocab_size}


def _names_ids(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids"))


def _closed(opened: OpenedModel, used: set[int]) -> set[int]:
    files = opened.side_files
    data = files.read(_JSON)
    if data is not None:
        return vocabulary_json.closed_tokens(_table(data, files.locate(_JSON)), used, files.locate(_JSON))
    data = files.read(_SPM)
    if data is not None:
        return vocabulary_spm.closed_pieces(data, used, files.locate(_SPM))
    hint = "Save it as tokenizer.json with transformers first."
    raise TokenizerError("this kind of tokenizer cannot be cut", file=files.locate(_JSON), hint=hint)


def _table(data: bytes, file: str) -> dict[str, Any]:
    return parse_json(data, file)


def _side_files(opened: OpenedModel, new_ids: Mapping[int, int]) -> dict[str, bytes]:
    """All side files with ids numbered anew."""
    files = opened.side_files
    found = {
        name: files.read(name, MAX_SIDE_FILE_BYTES)
        for name in files.names()
        if is_side_file(name) and name not in _STALE
    }
    if _JSON in found:
        values = _table(found[_JSON], files.locate(_JSON))
        found[_JSON] = _json(vocabulary_json.cut_tokenizer(values, new_ids, files.locate(_JSON)))
        found.pop(_SPM, None)
    else:
        found[_SPM] = vocabulary_spm.cut_pieces(found[_SPM], new_ids, files.locate(_SPM))
    for name in ("config.json", "generation_config.json"):
        values = read_side_json(files, name)
        if values is not None:
            values = {key: _renumbered(value, new_ids) if _names_ids(key) else value for key, value in values.items()}
            if name == "config.json":
                values["vocab_size"] = len(new_ids)
            found[name] = _json(values)
    values = read_side_json(files, "tokenizer_config.json")
    if values is not None and isinstance(values.get("added_tokens_decoder"), dict):
        decoder = values["added_tokens_decoder"].items()
        values["added_tokens_decoder"] = {str(new_ids[int(key)]): entry for key, entry in decoder}
        found["tokenizer_config.json"] = _json(values)
    values = read_side_json(files, "added_tokens.json")
    if values is not None:
        found["added_tokens.json"] = _json({text: new_ids[token_id] for text, token_id in values.items()})
    return found


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _renumbered(value: Any, new_ids: Mapping[int, int]) -> Any:
    """An id or a list of ids; an id that the model never had (-1) stays."""
    if isinstance(value, list):
        return [_renumbered(item, new_ids) for item in value]
    return new_ids.get(value, value) if type(value) is int else value


def _check_cut(
    opened: OpenedModel,
    before: Tokenizer,
    corpus: Sequence[str | os.PathLike[str]],
    side: Mapping[str, bytes],
    new_ids: Mapping[int, int],
    progress: Callable[[int], None] | None,
) -> None:
    """The corpus gives the same tokens, and any text comes back. Raises `TokenizerError`."""
    files = MemoryFiles(side, "the cut tokenizer")
    after = load_tokenizer(files, vocab_size=len(new_ids))
    olds = _corpus(opened, before, corpus)
    template = load_chat_template(files, after)
    news = (
        ids for path in corpus for doc in read_documents(path) for ids in encode_document(after, template, doc, path)
    )
    for old, new in zip(olds, news, strict=True):
        if [new_ids[token_id] for token_id in old] != new:
            raise TokenizerError("the cut tokenizer cuts the corpus differently", file=opened.path)
        if progress is not None:
            progress(len(old))
    for text in _SAMPLES:
        expected, found = (t.decode(t.encode(text), skip_special_tokens=True) for t in (before, after))
        if expected != found:
            raise TokenizerError("a text does not come back from the cut tokenizer", file=opened.path, found=found)


def _tensors(opened: OpenedModel, kept: np.ndarray) -> dict[str, TensorSource]:
    """All tensors, those with a row an id cut to `kept`."""
    checkpoint, weights = opened.checkpoint, opened.weights
    cut = {f"{weights.file_name('embed_tokens')}.weight"}
    if not weights.lm_head_is_embedding:
        stem = weights.place("lm_head")[0]
        if f"{stem}.weight" not in checkpoint.tensors:
            hint = "Cut the vocabulary before quantizing."
            raise ModelError("lm_head is quantized", file=checkpoint.path, key=stem, hint=hint)
        cut |= {f"{stem}.weight", f"{stem}.bias"} & set(checkpoint.tensors)
    found = {}
    for name, info in checkpoint.tensors.items():
        shape = (len(kept), *info.shape[1:]) if name in cut else info.shape
        load = partial(_rows, opened, name, kept) if name in cut else partial(checkpoint.read, name)
        found[name] = TensorSource(info.dtype, shape, load)
    return found


def _rows(opened: OpenedModel, name: str, kept: np.ndarray) -> np.ndarray:
    return opened.checkpoint.read(name)[kept]
