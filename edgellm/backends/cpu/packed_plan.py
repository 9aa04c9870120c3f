"""How many bytes packed weights take, and packing them, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgellm.backends.cpu.layout import BAND, LinearKind, LinearLayout, round_up
from edgellm.backends.cpu.packing import plan_linear
from edgellm.backends.cpu.scratch import scratch_floats
from edgellm.backends.cpu.slices import SLICED_FROM
from edgellm.errors import UsageError
from edgellm.formats.stored import WHOLE_BITS
from edgellm.model.program import Program
from edgellm.model.weights import Weights

#: Bits of the embedding and an unquantized lm_head, by the option's value.
HEAD_BITS = {"int8": 8, "int8-whole": 8, "int4": 4, "int4-whole": 4, "keep": 16}
#: Those of which large ones are stored in slices.
_SLICED = ("int8", "int4")
_DENSE_BITS = 16
_FLOAT_BYTES = 4
#: Numbers of a dense weight that are read at a time: enough to pay for the call, too few to leave a large cache.
_PIECE_NUMBERS = 1 << 19
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"


@dataclass
class PackingPlan:
    """Sizes of packing a program's weights.

    Attributes:
        layouts: of the embedding and the linears by name, the largest that each can have; a head that is the embedding
            has the embedding's.
        nbytes: the most that the arena takes.
        largest_tensor: bytes of the largest weight as stored.
        largest_words: bytes of the largest quantized linear as stored, whose codes are not unpacked first.
        largest_whole: the most that a weight takes which is unpacked as a whole, one at a time.
        largest_piece: the most that a piece of a dense weight takes, one a thread.
    """

    layouts: dict[str, LinearLayout] = field(default_factory=dict)
    nbytes: int = 0
    largest_tensor: int = 0
    largest_words: int = 0
    largest_whole: int = 0
    largest_piece: int = 0

    def threads_at_work(self, threads: int) -> int:
        """How many of `threads` can pack at a time without holding more than the largest tensor of the file."""
        return max(1, min(threads, self.largest_tensor // max(self.largest_words, 1)))

    def loading_bytes(self, threads: int) -> int:
        """Bytes held at a time beside the arena while `threads` threads pack."""
        return max(self.threads_at_work(threads) * max(self.largest_words, self.largest_piece), self.largest_whole)


def plan_packing(program: Program, weights: Weights, head: str) -> PackingPlan:
    """Sizes from headers alone; `head`: how the embedding and an unquantized lm_head are stored, of `HEAD_BITS`.

    Raises:
        UsageError: no such way to store them.
        ModelError: a linear is missing or stored in a way that is not supported.
    """
    if head not in HEAD_BITS:
        raise UsageError("no such choice", key="lm_head", found=head, allowed=", ".join(HEAD_BITS))
    plan = PackingPlan()
    for name, spec in program.weights.items():
        if spec.kind == "vector":
            plan.nbytes += round_up(_FLOAT_BYTES * spec.shape[0], 64)
        elif name == _HEAD and weights.lm_head_is_embedding and _EMBEDDING in plan.layouts:
            plan.layouts[name] = plan.layouts[_EMBEDDING]
        else:
            layout = _add_linear(plan, name, weights, head)
            plan.layouts[name] = layout
            plan.nbytes += layout.nbytes + round_up(_FLOAT_BYTES * layout.blocks * layout.lanes, 64)
    return plan


def _add_linear(plan: PackingPlan, name: str, weights: Weights, head: str) -> LinearLayout:
    rows, inputs = weights.program.weights[name].shape
    stored = {"kind": weights.stored_dtype(name)} if name == _EMBEDDING else weights.describe(name)
    if "group_size" not in stored:
        is_head = name == _HEAD or (name == _EMBEDDING and weights.lm_head_is_embedding)
        sliced = is_head and head in _SLICED and rows >= SLICED_FROM
        layout = plan_linear(rows, inputs, dense_bits(name, weights, head), sliced=sliced)
        plan.largest_tensor = max(plan.largest_tensor, rows * inputs * _ITEM_BYTES.get(stored["kind"], _FLOAT_BYTES))
        plan.largest_piece = max(plan.largest_piece, _piece_bytes(layout))
        return layout
    group_size = stored["group_size"] if stored["group_size"] > 0 else inputs
    layout = plan_linear(rows, inputs, stored["bits"], group_size)
    plan.largest_tensor = max(plan.largest_tensor, stored["nbytes"])
    if layout.kind == LinearKind.F16:
        plan.largest_whole = max(plan.largest_whole, stored["nbytes"] + 11 * rows * inputs)  # codes, floats twice
    elif stored["bits"] not in WHOLE_BITS or stored["checkpoint_format"] in ("int-quantized", "naive-quantized"):
        plan.largest_whole = max(plan.largest_whole, stored["nbytes"] + 2 * rows * inputs)  # codes, turned
    else:
        plan.largest_words = max(plan.largest_words, stored["nbytes"])
    return layout


def dense_bits(name: str, weights: Weights, head: str) -> int:
    """Bits that a dense weight is stored with. Four-bit storage is the head's alone: an embedding that is not the head
    has 8 then, for a token reads one row of it."""
    if name == _EMBEDDING:
        return 8 if HEAD_BITS[head] == 4 and not weights.lm_head_is_embedding else HEAD_BITS[head]
    return HEAD_BITS[head] if name == _HEAD else _DENSE_BITS


def piece_rows(layout: LinearLayout) -> int:
    """Rows of a dense weight that are read and packed at a time: whole bands."""
    band = BAND * layout.lanes
    return band * max(1, _PIECE_NUMBERS // (band * layout.inputs))


def _piece_bytes(layout: LinearLayout) -> int:
    return _FLOAT_BYTES * (min(piece_rows(layout), layout.rows) * layout.inputs + scratch_floats(layout.padded_inputs))
