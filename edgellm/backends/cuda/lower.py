"""From the program to launches: which ops one kernel does, with which buffers, weights and rows of the cache.

Two kinds of steps. A *decode* step has one token of each of `rows` sequences; row s is record s's. A *prompt* step has
`rows` tokens of one sequence, record 0's. Everything that changes from token to token stands in the records, so that
the launches of a decode step, and their graph, stay the same.

A decoder layer takes five launches in a decode step where the program allows:

    norm + q/k/v | head norms + RoPE + cache + attention | o + residual | norm + gate/up + activation | down + residual
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgellm.backends.cuda.attention import Attention, AttentionScratch
from edgellm.backends.cuda.cache import CachePlaces
from edgellm.backends.cuda.calls import Call, KernelSet
from edgellm.backends.cuda.device import Properties
from edgellm.backends.cuda.kernels.record import RECORD_WORDS, TOKEN
from edgellm.backends.cuda.kernels.sampling_plan import sample_grid
from edgellm.backends.cuda.linears import GEMV_TOKENS, Around, embed, gemm, gemvs, takes_half, view_from
from edgellm.backends.cuda.space import HalfView, Space, View
from edgellm.backends.cuda.upload import DeviceWeights, Matrix, unpaired
from edgellm.model.program import Op, Program

_ROW_THREADS = 256
_HEAD_WARPS = 4
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Model:
    """What launches need of a loaded model: its program, weights and scratch, the kernels and the device."""

    program: Program
    weights: DeviceWeights
    space: Space
    kernels: KernelSet
    chip: Properties


@dataclass(frozen=True)
class StepShape:
    """A kind of step.

    Attributes:
        rows: tokens of it.
        decode: each row is a sequence's; else all are one sequence's.
        fused: ops share kernels; else every op of the program leaves its buffers, for a trace.
    """

    rows: int
    decode: bool
    fused: bool = True

    @property
    def by_tiles(self) -> bool:
        """Whether there are enough rows for the prefill kernels."""
        return self.rows > GEMV_TOKENS


def lower(model: Model, cache: CachePlaces, scratch: AttentionScratch, shape: StepShape) -> list[Call]:
    """The launches of a step; those of the logits are `lower_logits`'."""
    return _Lowering(model, cache, scratch, shape).lower()


def lower_logits(model: Model, shape: StepShape, first: int, rows: int) -> list[Call]:
    """The launches that make logits of the rows first .. first + rows - 1, up to `GEMV_TOKENS`, into `Space.logits`."""
    ops = model.program.ops
    index = next(number for number, op in enumerate(ops) if op.kind == "logits")
    op, norm = ops[index], _norm_before(model.program, index) if shape.fused else None
    source = model.space.buffers[(norm or op).inputs[0]]
    out = View(model.space.logits, model.program.config.vocab_size, model.program.config.vocab_size)
    around = Around(
        **_norm_of(model, norm), multiplier=op.attributes["multiplier"], softcap=op.attributes["softcap"] or 0.0
    )
    x = view_from(source, first)
    return gemvs(model.weights.matrices[op.weights[0]], x, out, rows, around, model.chip, index)


def lower_choice(model: Model, rows: int, *, limited: bool) -> list[Call]:
    """The launches that choose a token for each of the first `rows` rows of `Space.logits`, as their records say, into
    `Space.chosen`. `limited`: some of them by top-k or top-p."""
    space, index = model.space, len(model.program.ops) - 1
    vocab_size = model.program.config.vocab_size
    blocks = sample_grid(vocab_size, model.chip.multiprocessors)
    given = {"logits": space.logits, "record": space.record, "thresholds": space.thresholds, "stride": vocab_size}
    found = {"values": space.best_values, "tokens": space.best_tokens}
    calls = [Call("sample_threshold", (rows,), given, index)] if limited else []
    calls.append(Call("sample_blocks", (blocks, rows), {**given, **found, "limited": int(limited)}, index))
    calls.append(Call("sample_rows", (rows,), {**found, "out": space.chosen, "out_stride": 1, "blocks": blocks}, index))
    return calls


def _norm_before(program: Program, index: int) -> Op | None:
    """The norm whose output the logits at `index` read, where nobody else does."""
    norm = program.ops[index - 1] if index else None
    if norm is None or norm.kind != "rms_norm" or norm.outputs != program.ops[index].inputs[:1]:
        return None
    return norm if norm.outputs != norm.inputs else None


def _norm_of(model: Model, norm: Op | None) -> dict[str, Any]:
    if norm is None:
        return {}
    weight = model.weights.vectors[norm.weights[0]]
    return {"norm": weight, "eps": norm.attributes["eps"], "offset": norm.attributes["offset"]}


class _Lowering:
    def __init__(self, model: Model, cache: CachePlaces, scratch: AttentionScratch, shape: StepShape) -> None:
        self.model, self.shape = model, shape
        self.ops = model.program.ops
        self.buffers = model.space.buffers
        sizes = (shape.rows, shape.decode, model.kernels.capability)
        self.attention = Attention(model.program.config, model.weights, model.space, cache, scratch, *sizes)
        self.calls: list[Call] = []
        self.made: tuple[int, str, int] | None = None  # what stands in `Space.half`
        self.norms: dict[str, Op] = {}  # by buffer: norms that the reader of the buffer does along the way

    def lower(self) -> list[Call]:
        index = 0
        while index < len(self.ops):
            op = self.ops[index]
            index += getattr(self, f"_{op.kind}")(index, op)
        return self.calls

    def _call(self, kernel: str, grid: tuple[int, ...], op: int, **arguments: Any) -> None:
        self.calls.append(Call(kernel, grid, arguments, op))

    def _row_arguments(self) -> dict[str, int]:
        return {"record": self.model.space.record, "step": int(self.shape.decode)}

    def _inputs(self, index: int, op: Op) -> int:
        """The runner uploads them."""
        return 1

    def _embed(self, index: int, op: Op) -> int:
        matrix, space, out = self.model.weights.matrices[op.weights[0]], self.model.space, self.buffers[op.outputs[0]]
        if self.shape.decode:
            ids = {"token_ids": space.record + _FLOAT_BYTES * TOKEN, "id_stride": RECORD_WORDS}
        else:
            ids = {"token_ids": space.ids, "id_stride": 1}
        self.calls.append(embed(matrix, ids, out, self.shape.rows, op.attributes["multiplier"], index))
        return 1

    def _rms_norm(self, index: int, op: Op) -> int:
        source, target = self.buffers[op.inputs[0]], self.buffers[op.outputs[0]]
        common = {"eps": op.attributes["eps"], "offset": op.attributes["offset"], **self._row_arguments()}
        weight = self.model.weights.vectors[op.weights[0]]
        group = op.attributes.get("group")
        if group is None:
            if self.shape.fused and self._read_by_products(index, op):
                self.norms[op.outputs[0]] = op
                return 1
            self._norm_rows(index, op)
            return 1
        if self.shape.fused and (taken := self.attention.fused(self.ops, index)):
            self.calls.append(taken.call)
            return taken.ops
        heads = source.width // group
        grid = (-(-heads // _HEAD_WARPS), self.shape.rows)
        arguments = {"x": source.address, "weight": weight, "out": target.address, "stride": source.stride}
        self._call("rms_norm_heads", grid, index, **arguments, heads=heads, head_dim=group, **common)
        return 1

    def _norm_rows(self, index: int, op: Op) -> None:
        source, target = self.buffers[op.inputs[0]], self.buffers[op.outputs[0]]
        weight = self.model.weights.vectors[op.weights[0]]
        arguments = {"x": source.address, "weight": weight, "out": target.address, "width": source.width}
        arguments |= {"eps": op.attributes["eps"], "offset": op.attributes["offset"]}
        self._call("rms_norm", (self.shape.rows,), index, **arguments, **self._row_arguments())

    def _read_by_products(self, index: int, op: Op) -> bool:
        """Whether matrix products alone read what the norm writes, and its input stays until they have."""
        target, source = op.outputs[0], op.inputs[0]
        if target == source:
            return False
        for later in self.ops[index + 1 :]:
            product = later.kind in ("linear", "logits") and later.inputs[0] == target
            if target in later.inputs and (not product or target in later.inputs[1:]):
                return False
            if target in later.outputs:
                return True
            if source in later.outputs and self._read_again(later, target):
                return False
        return target != self.model.program.result

    def _read_again(self, after: Op, name: str) -> bool:
        at = next(number for number, op in enumerate(self.ops) if op is after)
        for later in self.ops[at + 1 :]:
            if name in later.inputs:
                return True
            if name in later.outputs:
                return False
        return False

    def _around_norm(self, buffer: str) -> tuple[View, dict[str, Any]]:
        """What a product reads for `buffer`: itself, or what its norm reads and the norm."""
        norm = self.norms.get(buffer)
        if norm is None:
            return self.buffers[buffer], {}
        return self.buffers[norm.inputs[0]], _norm_of(self.model, norm)

    def _product(self, index: int, matrix: Matrix, source: str, out: View, around: Around) -> None:
        if self.shape.by_tiles and takes_half(matrix, self.model.chip):
            half = self._half(index, source, matrix.order)
            self.calls.append(gemm(matrix, half, out, self.shape.rows, around, self.model.chip, index))
            return
        x, norm = self._around_norm(source)
        self.calls += gemvs(matrix, x, out, self.shape.rows, replace(around, **norm), self.model.chip, index)

    def _half(self, index: int, source: str, order: int) -> HalfView:
        """A buffer, or what its norm makes of another one, as the prefill kernels read it; made once an op and order
        of inputs."""
        norm, space = self.norms.get(source), self.model.space
        if norm is not None and order:
            self._norm_rows(index, norm)
            norm = None
        view = self.buffers[source if norm is None else norm.inputs[0]]
        half = replace(space.half, stride=view.width)
        if self.made == (index, source, order):
            return half
        self.made = (index, source, order)
        arguments = {"x": view.address, "out": half.address, "scales": half.scales, "width": view.width}
        arguments |= self._row_arguments()
        if order:
            self._call("gather_float16", (self.shape.rows,), index, **arguments, stride=view.stride, order=order)
        elif norm is None:
            self._call("to_float16", (self.shape.rows,), index, **arguments, stride=view.stride)
        else:
            numbers = _norm_of(self.model, norm)
            arguments |= {"weight": numbers["norm"], "eps": numbers["eps"], "offset": numbers["offset"]}
            self._call("rms_norm_float16", (self.shape.rows,), index, **arguments)
        return half

    def _logits(self, index: int, op: Op) -> int:
        """The runner takes the rows that are wanted."""
        return 1

    def _linear(self, index: int, op: Op) -> int:
        source, adds = op.inputs[0], bool(op.attributes.get("add"))
        residual = {"adds": adds, "multiplier": op.attributes["multiplier"] if adds else 1.0}
        left = list(op.weights)
        while left:
            matrix = self.model.weights.matrices[left[0]]
            count = len(matrix.plan.names)
            if matrix.plan.paired and not self.shape.fused:
                self._product(index, unpaired(matrix), source, self.model.space.pairs(matrix.layout), Around())
                return 1
            if matrix.plan.paired:
                self._gated(index, matrix, source, self.ops[index + 1])
                return 2
            out = self.buffers[op.outputs[len(op.weights) - len(left)]]
            self._product(index, matrix, source, out, Around(**residual))
            left = left[count:]
        return 1

    def _gated(self, index: int, matrix: Matrix, source: str, act: Op) -> None:
        """Gate, up and activation at once."""
        self._product(index, matrix, source, self.buffers[act.outputs[0]], Around(act=act.attributes["act"]))

    def _store_kv(self, index: int, op: Op) -> int:
        if self.shape.fused and (taken := self.attention.fused(self.ops, index)):
            self.calls.append(taken.call)
            return taken.ops
        self.calls.append(self.attention.store(op, index))
        return 1

    def _rope(self, index: int, op: Op) -> int:
        self.calls.append(self.attention.rope(op, index))
        return 1

    def _attention(self, index: int, op: Op) -> int:
        self.calls += self.attention.attend(op, index)
        return 1

    def _act_mul(self, index: int, op: Op) -> int:
        before = self.ops[index - 1]
        if before.outputs == op.inputs and (matrix := self.model.weights.matrices[before.weights[0]]).plan.paired:
            self._gated(index, matrix, before.inputs[0], op)  # of a trace: else `_linear` has done it
            return 1
        gate, up, out = (self.buffers[name] for name in (*op.inputs, *op.outputs))
        grid = (-(-out.width // _ROW_THREADS), self.shape.rows)
        arguments = {"gate": gate.address, "up": up.address, "out": out.address, "stride": gate.stride}
        name = f"act_mul_{op.attributes['act']}"
        self._call(name, grid, index, **arguments, width=out.width, **self._row_arguments())
        return 1

    def _add(self, index: int, op: Op) -> int:
        x, y = (self.buffers[name] for name in op.inputs)
        count = x.stride * self.shape.rows
        arguments = {"x": x.address, "y": y.address, "count": count, "multiplier": op.attributes["multiplier"]}
        self._call("add", (-(-count // _ROW_THREADS),), index, **arguments)
        return 1
