"""Linears trained by one factor an output, norms and biases as they are."""

from __future__ import annotations

import numpy as np

from edgellm.convert.distill.network import Arrays
from edgellm.convert.distill.parameters import Parameters


class Scales:
    """W = factor * W0 for the matrices among `names`; `arrays` is what is trained: factors [out], and vectors as is.

    Args:
        parameters: written to by `apply`.
    """

    def __init__(self, parameters: Parameters, names: list[str]) -> None:
        self._parameters = parameters
        self._base = {name: parameters.arrays[name].copy() for name in names if parameters.arrays[name].ndim == 2}
        self.arrays: Arrays = {
            name: np.ones(len(self._base[name]), np.float32) if name in self._base else parameters.arrays[name]
            for name in names
        }

    def gradients(self, grads: Arrays) -> Arrays:
        """From gradients of the weights to those of what is trained: dfactor_o = sum_i dW_oi * W0_oi."""
        return {
            name: np.einsum("oi,oi->o", grad, self._base[name]) if name in self._base else grad
            for name, grad in grads.items()
            if name in self.arrays
        }

    def apply(self) -> None:
        """Put the factors into the weights."""
        for name, base in self._base.items():
            np.multiply(base, self.arrays[name][:, None], out=self._parameters.arrays[name])
