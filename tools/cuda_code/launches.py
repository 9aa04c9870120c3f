"""The launches of a decode step of a model, from its config alone: no weights, no GPU."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgellm.backends.cuda.attention import AttentionScratch
from edgellm.backends.cuda.cache import CachePlaces, LayerCache
from edgellm.backends.cuda.calls import Call, KernelSet
from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.lower import Model, StepShape, lower, lower_logits
from edgellm.backends.cuda.matrices import MatrixPlan, plan_matrices
from edgellm.backends.cuda.space import Space
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.cuda.upload import Matrix
from edgellm.backends.slots import CacheGeometry
from edgellm.model import ModelConfig, Program, build_program, fuse, read_config
from edgellm.model.rope import Rope
from edgellm.sidefiles import MemoryFiles
from tools.cuda_code.moved import Held, Moved, moved
from tools.cuda_code.pretended import pretended
from tools.ptx_emulator.driver import DEVICES, FakeDriver

_ADDRESSES = 1 << 40
_CHUNK = 512


@dataclass(frozen=True)
class Setting:
    """A decode step.

    Attributes:
        capability: of the device, times ten; one of the emulator's `DEVICES`.
        batch: sequences.
        depth: tokens that each has behind it, of `context`.
        bits, group_size: of the linears, symmetric; `lm_head` and `dtype`: how head and cache are stored.
    """

    capability: int
    batch: int = 1
    depth: int = 1024
    context: int = 4096
    bits: int = 4
    group_size: int = 128
    lm_head: str = "int8"
    dtype: str = "float16"


@dataclass(frozen=True)
class Launched:
    """A launch.

    Attributes:
        work: the linears that it does, or "attention", "embed_tokens".
        layer: decoder layer, None outside.
        kernel, blocks: what is launched.
        moved: bytes.
    """

    work: str
    layer: int | None
    kernel: str
    blocks: int
    moved: Moved


class _Stored:
    """In place of `Weights`: how each linear is stored."""

    def __init__(self, program: Program, setting: Setting) -> None:
        self.lm_head_is_embedding = program.config.tie_word_embeddings
        self._linear = {"bits": setting.bits, "group_size": setting.group_size, "act_order": False}

    def describe(self, name: str) -> dict[str, Any]:
        return {} if name in ("embed_tokens", "lm_head") else self._linear


class _Placed:
    """In place of `DeviceWeights`: an address for everything, and nothing there."""

    def __init__(self, program: Program, plans: tuple[MatrixPlan, ...]) -> None:
        self._addresses = itertools.count(_ADDRESSES, 256)
        names = [name for name, spec in program.weights.items() if spec.kind == "vector"]
        self.vectors = {name: next(self._addresses) for name in names}
        self.matrices = {plan.names[0]: self._matrix(program, plan) for plan in plans}
        self.matrices.setdefault("lm_head", self.matrices["embed_tokens"])
        self._turns: dict[Rope, int] = {}

    def turns(self, rope: Rope) -> int:
        return self._turns.setdefault(rope, next(self._addresses))

    def _matrix(self, program: Program, plan: MatrixPlan) -> Matrix:
        bias = any(program.weights[name].bias for name in plan.names)
        tiles, scales, whole = (next(self._addresses) for _ in range(3))
        layout = replace(plan.layout, own_zeros=False)
        return Matrix(plan, layout, tiles, scales, 0, whole if bias else 0, 0, 1 << layout.bits - 1, 1.0)


def config_of(values: Mapping[str, Any], name: str) -> ModelConfig:
    """The config of a config.json's values. Raises `ModelError`."""
    return read_config(MemoryFiles({"config.json": json.dumps(values).encode()}, name))


def launches(config: ModelConfig, setting: Setting) -> list[Launched]:
    """The launches of a decode step, in order.

    Raises:
        BackendUnavailable, UsageError: the backend does not serve such a model, or not so stored.
    """
    program = fuse(build_program(config))
    plans = plan_matrices(program, _Stored(program, setting), setting.lm_head)
    sizes = (config.num_key_value_heads, config.head_dim, _CHUNK, setting.dtype)
    geometry = CacheGeometry(setting.context, config.layer_windows, *sizes)
    weights = _Placed(program, plans)
    with pretended(FakeDriver(setting.capability)):
        device = open_device(0)
        space = Space(device, program, plans, setting.batch)
        model = Model(program, weights, space, KernelSet(device), device.properties)
        layers = tuple(LayerCache(0, 0, 0, 0, geometry.rows(layer)) for layer in range(len(geometry.windows)))
        scratch = AttentionScratch(device, Stream(device), config, geometry)
        shape = StepShape(setting.batch, decode=True)
        calls = lower(model, CachePlaces(geometry, layers), scratch, shape)
        calls += lower_logits(model, shape, 0, setting.batch)
    by_tiles = {matrix.tiles: matrix for matrix in weights.matrices.values()}
    held = Held(by_tiles, geometry, setting.depth)
    return [_launched(program, call, held) for call in calls]


def _launched(program: Program, call: Call, held: Held) -> Launched:
    op = program.ops[call.op]
    work = "attention"
    if "tiles" in call.arguments:
        names = held.matrices[call.arguments["tiles"]].plan.names
        work = op.kind if op.kind == "logits" else ", ".join(name.rpartition(".")[-1] for name in names)
    blocks = call.grid[0]
    for extent in call.grid[1:]:
        blocks *= extent
    return Launched(work, op.layer, call.kernel, blocks, moved(call, held))


def table(name: str, setting: Setting, found: list[Launched], measured: Mapping[str, Any]) -> Iterator[str]:
    """Lines of text: what the step is, then a line for each kind of launch and one for all.

    Args:
        measured: rows of `measured.json` by kernel and capability.
    """
    device = DEVICES[setting.capability]
    layers = {launch.layer for launch in found} - {None}
    a_layer = max(Counter(launch.layer for launch in found if launch.layer is not None).values())
    yield (
        f"{name} on sm_{setting.capability} ({device.name}, {device.multiprocessors} multiprocessors), batch "
        f"{setting.batch}, {setting.depth} of {setting.context} tokens: {a_layer} launches a layer, {len(found)} a "
        f"step of {len(layers)} layers"
    )
    titles = ("weights+cache", "read", "written", "registers", "shared", "a weight")
    yield _line("launch", "kernel", "blocks", "a step", *titles)
    for launch, times in Counter(replace(launch, layer=None) for launch in found).items():
        row, sizes = measured[launch.kernel][str(setting.capability)], launch.moved
        taken = (row["registers"], row["shared"], row.get("a_weight", "-"))
        cells = (f"{sizes.streamed:,}", f"{sizes.read:,}", f"{sizes.written:,}", *taken)
        yield _line(launch.work, launch.kernel, launch.blocks, times, *cells)
    sums = [sum(getattr(launch.moved, key) for launch in found) for key in ("streamed", "read", "written")]
    yield _line("all", "", "", len(found), *(f"{total:,}" for total in sums), "", "", "")


def _line(work: str, kernel: str, *cells: object) -> str:
    widths = (7, 7, 14, 12, 11, 10, 8, 9)
    shown = "".join(f"{cell!s:>{width}s}" for cell, width in zip(cells, widths, strict=True))
    return f"{work:24s} {kernel:34s}{shown}".rstrip()
