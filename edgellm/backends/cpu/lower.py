"""From the fused program to the op table: where buffers lie, which rows an op becomes, where threads must meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgellm.backends.cpu.choosing import PARTS, part_size
from edgellm.backends.cpu.layout import LinearKind, LinearLayout, round_up
from edgellm.backends.cpu.linear_tiles import layout_fields, scratch_sizes
from edgellm.backends.cpu.optable import ACTIVATIONS, LOGITS, OP_DTYPE, TOKENS, Kind
from edgellm.backends.cpu.packed import PackedLinear, PackedWeights
from edgellm.backends.interface import LogitsUse
from edgellm.errors import BackendUnavailable
from edgellm.model.program import Op, Program
from edgellm.model.rope import Rope

_ALIGNED_FLOATS = 16
#: Fewest bytes of a weight that a thread takes at a time in a step of one token. Two Zen 4 cores that other programs
#: used as well, Llama-3.2-1B's shape, a token by these pieces in turn with one by halves as before: of its time 32 KiB
#: took 0.966, 64 0.915 to 0.950, 128 0.904 to 0.925, 256 0.904; where nothing else ran none differed by 2 %.
PIECE_BYTES = 128 << 10
_LINEARS = {LinearKind.F16: Kind.LINEAR_F16, LinearKind.INT8: Kind.LINEAR_INT8, LinearKind.INT4: Kind.LINEAR_INT4}
_LOGITS = {
    LinearKind.F16: Kind.LOGITS_F16,
    LinearKind.INT8: Kind.LOGITS_INT8,
    LinearKind.INT4: Kind.LOGITS_INT4,
    LinearKind.INT2: Kind.LOGITS_INT2,
}
_REFINES = {LinearKind.INT4: Kind.REFINE_INT4, LinearKind.INT2: Kind.REFINE_INT2}
#: Kinds of ops that become rows.
OPS = ("embed", "inputs", "rms_norm", "linear", "store_kv", "rope", "attention", "act_mul", "add", "logits")
#: The buffer of the rows whose logits are wanted.
PICKED = "picked"


@dataclass(frozen=True)
class Lowered:
    """A program that compiled code can walk.

    Attributes:
        table: records of `OP_DTYPE`.
        offsets: element of `act` where each buffer begins, by name.
        act_floats: elements of `act`.
        tokens: element of `act` where the chosen tokens begin, see `best.py`.
        quads, xs: elements of the scratch for quantized activations.
        permutations: int32, those of all weights one behind the other, at least one element.
        ropes: the distinct rotations; rows name them by index.
    """

    table: np.ndarray
    offsets: dict[str, int]
    act_floats: int
    tokens: int
    quads: int
    xs: int
    permutations: np.ndarray
    ropes: tuple[Rope, ...]


@dataclass
class _Row:
    fields: dict[str, Any]
    reads: set[str]
    writes: set[str] = field(default_factory=set)


def lower(program: Program, packed: PackedWeights, max_tokens: int, planes: int) -> Lowered:
    """Lower a program for steps of up to `max_tokens` tokens with up to `planes` planes of activations."""
    return _Lowering(program, packed, max_tokens, planes).lower()


def check_ops(program: Program) -> None:
    """Raises `BackendUnavailable` for a program with ops that this backend does not know, and for one that was cut out
    of another and gives no logits."""
    hint = "Take the backend reference for this program."
    if program.result != "logits":
        found, allowed = program.result, "logits"
        raise BackendUnavailable(
            "the CPU backend gives logits alone", key="result", found=found, allowed=allowed, hint=hint
        )
    unknown = next((op.kind for op in program.ops if op.kind not in OPS), None)
    if unknown is not None:
        raise BackendUnavailable(
            "the CPU backend has no such op", key="op", found=unknown, allowed=", ".join(OPS), hint=hint
        )


class _Lowering:
    def __init__(self, program: Program, packed: PackedWeights, max_tokens: int, planes: int) -> None:
        self.program, self.packed = program, packed
        self.max_tokens, self.planes = max_tokens, planes
        self.rows: list[_Row] = []
        self.ropes: list[Rope] = []
        self.permutations: list[np.ndarray] = []
        self.known: dict[bytes, int] = {}
        self.scratch = [1, 1]
        self.widths = {**program.buffers, PICKED: program.config.hidden_size}
        self.offsets, self.act_floats, self.tokens = {}, 0, 0
        for name, width in self.widths.items():
            self.offsets[name] = self.act_floats
            self.act_floats += round_up(width * max_tokens, _ALIGNED_FLOATS)

    def lower(self) -> Lowered:
        for index, op in enumerate(self.program.ops):
            self.index = index
            getattr(self, f"_{op.kind}")(op)
        permutations = np.concatenate(self.permutations) if self.permutations else np.zeros(1, np.int32)
        return Lowered(
            self._table(),
            self.offsets,
            self.act_floats,
            self.tokens,
            *self.scratch,
            permutations.astype(np.int32),
            tuple(self.ropes),
        )

    def _table(self) -> np.ndarray:
        """The rows, with a barrier behind each row that the next ones must not overtake."""
        table = np.zeros(len(self.rows), OP_DTYPE)
        reads: set[str] = set()
        writes: set[str] = set()
        for number, row in enumerate(self.rows):
            if row.reads & writes or row.writes & (reads | writes):
                table[number - 1]["barrier"] = 1
                reads, writes = set(), set()
            reads |= row.reads
            writes |= row.writes
            for key, value in row.fields.items():
                table[number][key] = value
        linears = np.flatnonzero((table["kind"] >= Kind.LINEAR_F16) & (table["kind"] <= Kind.LOGITS_INT2))
        table["next"] = -1
        table["next"][linears[:-1]] = linears[1:]
        return table

    def _row(self, kind: Kind, op: Op, reads: Iterable[str], writes: Iterable[str], **fields: Any) -> None:
        common = {"kind": kind, "program_op": self.index, "layer": -1 if op.layer is None else op.layer}
        none = {"permutation": -1, "bias": -1, "rope": -1, "factor": 1.0, "multiplier": 1.0}
        self.rows.append(_Row({**none, **common, **fields}, set(reads), set(writes)))

    def _at(self, field_name: str, buffer: str) -> dict[str, int]:
        return {field_name: self.offsets[buffer], f"{field_name}_stride": self.widths[buffer]}

    def _rope_index(self, rope: Rope | None) -> int:
        if rope is None:
            return -1
        if rope not in self.ropes:
            self.ropes.append(rope)
        return self.ropes.index(rope)

    def _inputs(self, op: Op) -> None:
        """The runner puts them where they belong before the step."""

    def _embed(self, op: Op) -> None:
        table = self.packed.linears[op.weights[0]]
        out = op.outputs[0]
        fields = {**self._at("out", out), **_weight_fields(table), "code": table.layout.kind}
        fields["multiplier"] = op.attributes["multiplier"]
        self._row(Kind.EMBED, op, (), (out,), **fields)
        for layout, place in _later_slices(table):
            self._row(Kind.EMBED, op, (out,), (out,), **fields | place | {"code": layout.kind})

    def _rms_norm(self, op: Op) -> None:
        source, out = op.inputs[0], op.outputs[0]
        width = self.widths[source]
        self._row(
            Kind.RMS_NORM,
            op,
            (source,),
            (out,),
            **self._at("source", source),
            **self._at("out", out),
            weight=self.packed.vectors[op.weights[0]],
            width=width,
            group=op.attributes.get("group") or width,
            eps=op.attributes["eps"],
            offset=op.attributes["offset"],
        )

    def _linear(self, op: Op) -> None:
        adds = {"adds": 1, "multiplier": op.attributes["multiplier"]} if op.attributes.get("add") else {}
        weights = [self.packed.linears[name] for name in op.weights]
        prepared = None
        for output, weight in zip(op.outputs, weights, strict=True):
            prepared = self._prepare(op, op.inputs[0], weight, prepared, TOKENS)
            fields = {**self._at("source", op.inputs[0]), **self._at("out", output), **_weight_fields(weight), **adds}
            fields["permutation"] = prepared[2]
            reads = ("activations", output) if adds else ("activations",)
            self._row(_LINEARS[weight.layout.kind], op, reads, (output,), **fields)

    def _prepare(self, op: Op, source: str, weight: PackedLinear, before: tuple | None, over: int) -> tuple:
        """Bring the activations into the form that `weight` reads, unless the row before left them so."""
        layout = weight.layout
        form = (layout.kind == LinearKind.F16, layout.group, self._permutation(weight.permutation))
        if form != before:
            kind = Kind.ARRANGE if form[0] else Kind.QUANTIZE
            fields = {**self._at("source", source), "inputs": layout.inputs, "group": layout.group}
            self._row(kind, op, (source,), ("activations",), **fields, permutation=form[2], over=over)
            sizes = scratch_sizes(layout, self.max_tokens, self.planes)
            self.scratch = [max(pair) for pair in zip(self.scratch, sizes, strict=True)]
        return form

    def _permutation(self, permutation: np.ndarray | None) -> int:
        """Where a permutation begins; equal ones (q, k and v may share theirs) are kept once."""
        if permutation is None:
            return -1
        key = permutation.tobytes()
        if key not in self.known:
            self.known[key] = sum(map(len, self.permutations))
            self.permutations.append(permutation)
        return self.known[key]

    def _store_kv(self, op: Op) -> None:
        k, v = op.inputs
        rope = self.program.config.layer_ropes[op.layer]
        fields = {**self._at("source", k), **self._at("other", v), "rope": self._rope_index(rope)}
        self._row(Kind.STORE_KV, op, (k, v), ("cache",), **fields)

    def _rope(self, op: Op) -> None:
        x = op.inputs[0]
        fields = {**self._at("source", x), "width": self.widths[x]}
        self._row(Kind.ROPE, op, (x,), (x,), **fields, rope=self._rope_index(op.attributes["rope"]))

    def _attention(self, op: Op) -> None:
        q, out = op.inputs[0], op.outputs[0]
        places = {**self._at("source", q), **self._at("out", out)}
        fields = {
            "rope": self._rope_index(op.attributes["rope"]),
            "window": op.attributes["window"] or 0,
            "scale": op.attributes["scale"],
            "cap": op.attributes["softcap"] or 0.0,
        }
        self._row(Kind.ATTEND, op, (q, "cache"), (out, "partials"), **places, **fields)
        self._row(Kind.ATTEND_MERGE, op, ("partials",), (out, "partials"), **places, **fields)

    def _act_mul(self, op: Op) -> None:
        gate, up = op.inputs
        out = op.outputs[0]
        places = {**self._at("source", gate), **self._at("other", up), **self._at("out", out)}
        code = ACTIVATIONS[op.attributes["act"]]
        self._row(Kind.ACT_MUL, op, (gate, up), (out,), **places, width=self.widths[out], code=code)

    def _add(self, op: Op) -> None:
        x, y = op.inputs
        places = {**self._at("out", x), **self._at("other", y)}
        multiplier = op.attributes["multiplier"]
        self._row(Kind.ADD, op, (x, y), (x,), **places, width=self.widths[x], multiplier=multiplier)

    def _logits(self, op: Op) -> None:
        source = op.inputs[0]
        width = self.widths[source]
        places = {**self._at("source", source), **self._at("out", PICKED)}
        self._row(Kind.PICK_ROWS, op, (source,), (PICKED,), **places, width=width, over=LOGITS)
        weight = self.packed.linears[op.weights[0]]
        form = self._prepare(op, PICKED, weight, None, LOGITS)
        fields = {**self._at("source", PICKED), **_weight_fields(weight), "permutation": form[2], "over": LOGITS}
        vocab = weight.layout.rows
        fields |= {"out": 0, "out_stride": vocab}
        self._row(_LOGITS[weight.layout.kind], op, ("activations",), ("logits",), **fields)
        peaks = {"other": self.act_floats}
        self.act_floats += round_up(weight.layout.blocks, _ALIGNED_FLOATS) if weight.layout.rest else 0
        for number, (layout, place) in enumerate(_later_slices(weight)):
            # the last slice is read of all rows where all logits count, the one before where any may be drawn
            needed = {"code": LogitsUse.ALL - (len(weight.layout.rest) - 1 - number), **peaks}
            self._row(Kind.PEAKS, op, ("logits",), ("peaks",), **needed, width=vocab, over=LOGITS)
            reads = ("activations", "logits", "peaks")
            self._row(_REFINES[layout.kind], op, reads, ("logits",), **fields | place | needed)
        cap, multiplier = op.attributes["softcap"] or 0.0, op.attributes["multiplier"]
        if cap or multiplier != 1.0:
            fields = {"source": 0, "source_stride": vocab, "width": vocab, "multiplier": multiplier, "cap": cap}
            self._row(Kind.SOFTCAP, op, ("logits",), ("logits",), **fields, over=LOGITS)
        self.tokens = self.act_floats
        self.act_floats += (PARTS + 1) * self.max_tokens
        fields = {"other": self.tokens + self.max_tokens, "width": vocab, "group": part_size(vocab), "over": LOGITS}
        self._row(Kind.BEST, op, ("logits",), ("best",), **fields)
        self._row(Kind.TOKEN, op, ("logits", "best"), ("tokens",), **fields, out=self.tokens)


def _later_slices(weight: PackedLinear) -> Iterator[tuple[LinearLayout, dict[str, Any]]]:
    """Layouts and fields of the slices behind the first, which add to what is there."""
    for offset, layout in weight.layout.slices[1:]:
        yield layout, {**layout_fields(layout), "weight": weight.offset + offset, "bias": -1, "adds": 1}


def _weight_fields(weight: PackedLinear) -> dict[str, Any]:
    layout = weight.layout
    return {
        "weight": weight.offset,
        "bias": -1 if weight.bias is None else weight.bias,
        **layout_fields(layout),
        "piece": PIECE_BYTES // layout.block_bytes,
        "factor": weight.factor,
    }
