"""Mixed precision: which linear gets how many bits, so that the sum of measured losses is least within a budget.

A choice for every linear among its options, bytes within the budget, least loss: a knapsack, one pick an item. It is
solved by dynamic programming over the sums that can be reached: of two with a smaller and a larger size only those are
kept where the larger has less loss. Layers of a model have few distinct shapes, so their sums meet and stay few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.convert.hessian import output_error
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats.quantized import group_count

#: Sums kept at most; beyond, the best of every size class stays, and the answer is no longer proven to be the best.
_MAX_STATES = 1 << 16


@dataclass(frozen=True)
class Option:
    """One way to store a linear.

    Attributes:
        scheme: bits and groups.
        nbytes: of codes, scales and zero points in the file.
        loss: what it costs, in any unit that adds up over linears.
    """

    scheme: Scheme
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """A choice for every linear.

    Attributes:
        chosen: by name.
        nbytes, loss: sums over the linears.
        average_bits: bits a weight, scales and zero points included.
        proven: whether no choice within the budget has less loss.
    """

    chosen: Mapping[str, Option]
    nbytes: int
    loss: float
    average_bits: float
    proven: bool


def quantized_nbytes(shape: tuple[int, int], scheme: Scheme) -> int:
    """Bytes of codes, float16 scales, packed zero points and, with a permutation, the group of each input."""
    outputs, inputs = shape
    groups = group_count(inputs, scheme.group_width(inputs))
    bits = outputs * inputs * scheme.bits + outputs * groups * (16 + scheme.bits)
    ordered = scheme.desc_act and not scheme.static_groups and groups > 1
    return -(-bits // 8) + (4 * inputs if ordered else 0)


def measure_options(
    weight: np.ndarray, hessian: np.ndarray, schemes: Iterable[Scheme], *, threads: int | None = None
) -> list[Option]:
    """Options with the relative squared error of the output that rounding to nearest leaves on calibration tokens.

    Args:
        weight: float32 [out, in].
        hessian: X^T X [in, in].
        schemes: what may be chosen.
        threads: for rounding.

    Raises:
        NumericalError: NaN or infinity.
    """
    whole = output_error(weight, hessian)
    importance = hessian.diagonal()
    options = []
    for scheme in schemes:
        difference = quantize_rtn(weight, scheme, importance, threads=threads).dequantize() - weight
        lost = output_error(difference, hessian)
        options.append(Option(scheme, quantized_nbytes(weight.shape, scheme), lost / whole if whole > 0 else 0.0))
    return options


def allocate(
    options: Mapping[str, Sequence[Option]],
    parameters: Mapping[str, int],
    average_bits: float,
    *,
    tied: Sequence[Sequence[str]] = (),
) -> Allocation:
    """Choose one option for every linear.

    Args:
        options: by linear name, at least one each.
        parameters: weights of each linear, out * in.
        average_bits: the budget over all linears, scales and zero points included.
        tied: groups of linears that must get the same scheme, as engines that fuse q/k/v or gate/up want; they need
            options with equal schemes in equal order.

    Raises:
        UsageError: the budget is below the smallest options, or tied linears differ in their schemes.
        NumericalError: a loss is NaN or infinite.
    """
    if any(not np.isfinite(option.loss) for choices in options.values() for option in choices):
        raise NumericalError("NaN or infinite", key="loss")
    items = _items(options, tied)
    total = sum(parameters[name] for name in options)
    budget = int(average_bits * total / 8) if np.isfinite(average_bits) else 0
    floor = sum(min(size for size, _ in item) for _, item in items)
    if floor > budget:
        allowed = f"at least {8 * floor / max(1, total):.4g}"
        raise UsageError("too few for the smallest options", key="average_bits", found=average_bits, allowed=allowed)
    picks, proven = _solve([item for _, item in items], budget)
    chosen = {name: options[name][pick] for (names, _), pick in zip(items, picks, strict=True) for name in names}
    chosen = {name: chosen[name] for name in options}
    nbytes = sum(option.nbytes for option in chosen.values())
    loss = sum(option.loss for option in chosen.values())
    return Allocation(chosen, nbytes, loss, 8 * nbytes / max(1, total), proven)


Item = list[tuple[int, float]]


def _items(
    options: Mapping[str, Sequence[Option]], tied: Sequence[Sequence[str]]
) -> list[tuple[tuple[str, ...], Item]]:
    """(names, (bytes, loss) of each choice): one for each group of linears that choose together."""
    together = {name: tuple(group) for group in tied for name in group}
    items = []
    for name in options:
        names = together.get(name, (name,))
        if names[0] != name:
            continue
        schemes = [option.scheme for option in options[name]]
        for other in names:
            if [option.scheme for option in options.get(other, ())] != schemes or not schemes:
                raise UsageError("tied linears need the same schemes in the same order", key=other)
        rows = list(zip(*(options[other] for other in names), strict=True))
        items.append((names, [(sum(o.nbytes for o in row), sum(o.loss for o in row)) for row in rows]))
    return items


def _solve(items: list[Item], budget: int) -> tuple[list[int], bool]:
    """(index of the choice for each item, whether it is proven to be the best) for sizes within the budget."""
    room = [0] * (len(items) + 1)  # the least that the items after this one take
    for index in range(len(items) - 1, -1, -1):
        room[index] = room[index + 1] + min(size for size, _ in items[index])
    sizes, losses = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    proven = True
    for index, item in enumerate(items):
        count = len(sizes)
        grown = np.concatenate([sizes + size for size, _ in item])
        summed = np.concatenate([losses + loss for _, loss in item])
        kept = _frontier(grown, summed, budget - room[index + 1])
        if len(kept) > _MAX_STATES:
            kept, proven = _thinned(kept, grown), False
        sizes, losses = grown[kept], summed[kept]
        history.append(((kept % count).astype(np.int32), (kept // count).astype(np.int16)))
    state, picks = len(sizes) - 1, []  # the frontier's last has the least loss
    for parents, choices in reversed(history):
        picks.append(int(choices[state]))
        state = int(parents[state])
    return picks[::-1], proven


def _frontier(sizes: np.ndarray, losses: np.ndarray, limit: int) -> np.ndarray:
    """Indexes by rising size, each with less loss than all before, none above the limit."""
    order = np.lexsort((losses, sizes))
    order = order[sizes[order] <= limit]
    best = np.minimum.accumulate(losses[order])
    keep = np.ones(len(order), bool)
    keep[1:] = losses[order][1:] < best[:-1]
    return order[keep]


def _thinned(kept: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The smallest, and of each of equal size classes the one with the least loss."""
    found = sizes[kept]
    classes = (found - found[0]) * (_MAX_STATES - 2) // max(1, int(found[-1] - found[0]))
    last = np.append(np.flatnonzero(np.diff(classes)), len(kept) - 1)
    return kept[np.union1d([0], last)]
