"""tokenizer.model (sentencepiece) with fewer pieces: BPE models, the pieces' merges kept closed.

sentencepiece's BPE joins the two neighbouring symbols whose joined text is the piece of the highest score, so that the
pieces are the merges. Unigram models choose among whole segmentations by probability and are refused.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Mapping

from edgellm.errors import TokenizerError
from edgellm.text import spm_proto

_PIECES, _TRAINER = 1, 2
_MODEL_TYPE, _BPE = 3, 2
_SCORE = 2


def closed_pieces(data: bytes, used: Iterable[int], file: str) -> set[int]:
    """Ids that must stay for the ids `used`: their derivations, every piece that is not plain text, and single
    characters where the model cannot spell what it lacks in bytes.

    Raises:
        TokenizerError: not a BPE model.
    """
    _check(data, file)
    pieces = spm_proto.parse_spm(data, file).pieces
    scores: dict[str, tuple[float, int]] = {}
    for token_id, ((text, kind), score) in enumerate(zip(pieces, _scores(data), strict=True)):
        if kind in (spm_proto.NORMAL, spm_proto.USER_DEFINED):
            scores.setdefault(text, (score, token_id))
    has_bytes = any(kind == spm_proto.BYTE for _, kind in pieces)
    keep = {i for i, (text, kind) in enumerate(pieces) if kind != spm_proto.NORMAL}
    keep |= {i for i, (text, _) in enumerate(pieces) if len(text) == 1 and not has_bytes} | set(used)
    for token_id in [i for i in keep if i < len(pieces) and pieces[i][1] == spm_proto.NORMAL]:
        keep |= {scores[part][1] for part in _derivation(pieces[token_id][0], scores) if part in scores}
    return keep


def cut_pieces(data: bytes, new_ids: Mapping[int, int], file: str) -> bytes:
    """The model with only the pieces of `new_ids` (old: new, in the same order)."""
    out, number, begin = bytearray(), 0, 0
    for field, value, at in spm_proto.fields(data, 0, len(data)):
        end = value.stop if isinstance(value, range) else _end_of(data, at, value)
        if field != _PIECES or number in new_ids:
            out += data[begin:end]
        number += field == _PIECES
        begin = end
    return bytes(out)


def _end_of(data: bytes, at: int, value: int) -> int:
    """Where a varint that stands at `at` ends; a ModelProto's own fields are messages and varints alone."""
    while data[at] & 0x80:
        at += 1
    return at + 1


def _check(data: bytes, file: str) -> None:
    kind = 1
    for field, value, _ in spm_proto.fields(data, 0, len(data)):
        if field == _TRAINER and isinstance(value, range):
            for inner, number, _ in spm_proto.fields(data, value.start, value.stop):
                kind = number if inner == _MODEL_TYPE and isinstance(number, int) else kind
    if kind != _BPE:
        hint = "Unigram chooses among whole segmentations by probability: cutting it changes any text."
        raise TokenizerError(
            "its vocabulary cannot be cut", file=file, key="trainer_spec.model_type", found=kind, allowed="2", hint=hint
        )


def _scores(data: bytes) -> list[float]:
    found = []
    for field, value, _ in spm_proto.fields(data, 0, len(data)):
        if field == _PIECES and isinstance(value, range):
            score = 0.0
            for inner, _, at in spm_proto.fields(data, value.start, value.stop):
                if inner == _SCORE:
                    score = struct.unpack_from("<f", data, at)[0]
            found.append(score)
    return found


def _derivation(text: str, scores: Mapping[str, tuple[float, int]]) -> set[str]:
    symbols = list(text)
    seen = set(symbols)
    while len(symbols) > 1:
        joined = [left + right for left, right in itertools.pairwise(symbols)]
        found = [(-scores[both][0], at) for at, both in enumerate(joined) if both in scores]
        if not found:
            return seen
        _, at = min(found)
        symbols[at : at + 2] = [joined[at]]
        seen.add(joined[at])
    return seen
