"""How far each linear's outputs are off after quantizing, on calibration tokens of the unquantized model.

    sum |X (W - W')^T|^2 / sum |X W^T|^2 = tr(D H D^T) / tr(W H W^T),    D = W - W', H = X^T X

Perplexity of a tiny model can move either way by chance; this is what quantizers make small.
"""

from __future__ import annotations

import numpy as np

from edgellm.convert.blocks import BlockRunner
from edgellm.convert.hessian import Hessian
from edgellm.formats import QuantizedTensor
from edgellm.model import OpenedModel

Hessians = dict[str, np.ndarray]


def hessians(opened: OpenedModel, rows: np.ndarray) -> Hessians:
    """X^T X by the name of every linear of the decoder layers, over token ids `rows` int32 [N, L]."""
    runner, found = BlockRunner(opened), {}

    def tap(names: tuple[str, ...], x: np.ndarray) -> None:
        if names[0] not in found:
            found.update(dict.fromkeys(names, Hessian(x.shape[1], names[0])))
        found[names[0]].add(x)

    hidden = runner.embed(rows)
    for layer in range(runner.num_layers):
        hidden = runner.block(layer, hidden, tap)
    return {name: sums.matrix() for name, sums in found.items()}


def losses(source: OpenedModel, quantized: OpenedModel, sums: Hessians) -> dict[str, float]:
    """Relative squared error of the outputs by linear; without meaning where scales were folded (AWQ)."""
    found = {}
    for name, matrix in sums.items():
        before, after = _dense(source, name), _dense(quantized, name)
        off = before - after
        found[name] = float(np.vdot(off @ matrix, off) / max(np.vdot(before @ matrix, before), 1e-30))
    return found


def _dense(opened: OpenedModel, name: str) -> np.ndarray:
    weight = opened.weights.linear(name)
    return np.asarray(weight.dequantize() if isinstance(weight, QuantizedTensor) else weight, np.float64)
