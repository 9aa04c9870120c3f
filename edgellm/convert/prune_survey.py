"""What one pass over the whole model finds: which blocks turn the hidden states least, and what each channel adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner
from edgellm.convert.scores import Influence, channel_energy
from edgellm.model.cut import layer_span

_STEP_TOKENS = 8192


@dataclass(frozen=True)
class Survey:
    """By layer of the source.

    Attributes:
        influences: block influence, 0 to 1.
        energies: float64 [mlp_width] a layer: what each MLP channel adds, relative to the hidden states behind it.
    """

    influences: list[float]
    energies: list[np.ndarray]


def survey(runner: BlockRunner, hidden: Activations, done: Callable[[int], None] | None = None) -> Survey:
    """Run `hidden` [N, L, D], which holds the embeddings, through all layers; what it holds is then spent."""
    found = Survey([], [])
    step = max(_STEP_TOKENS // hidden.shape[1], 1)
    for layer in range(runner.num_layers):
        influence, squares, energy = Influence(), [0.0, 0], [0.0]
        name = f"layers.{layer}.mlp.down_proj"

        def tap(names: tuple[str, ...], inputs: np.ndarray, name: str = name, squares: list = squares) -> None:
            if name in names:
                squares[0] = squares[0] + np.square(inputs).sum(axis=0, dtype=np.float64)
                squares[1] += len(inputs)

        with runner.stretch(*layer_span(runner.program, layer, layer + 1)) as stretch:
            for first in range(0, hidden.shape[0], step):
                before = hidden.read(first, min(first + step, hidden.shape[0])).copy()
                after = stretch.run({"x": before}, tap=tap)
                influence.add(before, after)
                energy[0] += float(np.square(after).sum(dtype=np.float64))
                hidden.write(first, after)
                if done is not None:
                    done(len(before) * hidden.shape[1])
        mean_square = squares[0] / max(squares[1], 1)
        around = max(energy[0] / (hidden.shape[0] * hidden.shape[1]), 1e-30)
        found.influences.append(influence.value)
        found.energies.append(channel_energy(runner.weights.float32(name), mean_square) / around)
    return found


def share_widths(energies: list[np.ndarray], widths: Mapping[int, int], multiple: int) -> dict[int, int]:
    """As many channels as `widths` has altogether, given to the layers whose channels add most: width by layer.

    Each width is a multiple of `multiple` (or all there are), at least one multiple.
    """
    blocks: list[tuple[float, int]] = []
    taken = {}
    for layer in widths:
        ordered = np.sort(energies[layer])[::-1]
        taken[layer] = min(multiple, len(ordered))
        for first in range(multiple, len(ordered), multiple):
            part = ordered[first : first + multiple]
            blocks.append((float(part.mean()), layer))
    left = sum(widths.values()) - sum(taken.values())
    for _, layer in sorted(blocks, reverse=True):  # blocks of a layer come in falling order by themselves
        if left < multiple:
            break
        step = min(multiple, len(energies[layer]) - taken[layer])
        taken[layer] += step
        left -= step
    return taken
