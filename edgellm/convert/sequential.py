"""Calibration tokens through a model, block by block and within a block from linear to linear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner, Tap
from edgellm.convert.stages import Stage, stages_of
from edgellm.model import Op
from edgellm.model.cut import layer_span

#: Called with a linear (or several that share an input) once all calibration tokens have been shown to the tap.
Shown = Callable[[Op], None]


class Sequential:
    """The hidden states of N sequences of L tokens, on their way through the blocks.

    They always lie in a file, from which a killed run goes on; other activations lie in memory up to `memory_bytes`
    and in files above.

    Args:
        runner: of the model; its weights may be replaced while this runs.
        folder: for the files.
        memory_bytes: for activations other than the hidden states.
    """

    def __init__(self, runner: BlockRunner, folder: Path, *, memory_bytes: int) -> None:
        self.runner, self._folder = runner, folder
        self._memory_bytes = memory_bytes
        self._kept: dict[str, Activations] = {}

    def begin(self, token_ids: np.ndarray) -> None:
        """Embed token ids int32 [N, L]: hidden states into layer 0."""
        self.close()
        hidden = Activations(*token_ids.shape, self.runner.program.buffers["x"], self.hidden_path(0))
        self.runner.embed_into(token_ids, hidden)
        self._kept = {"x": hidden}

    def resume(self, layer: int, sequences: int, length: int, digest: str | None) -> bool:
        """Take up the hidden states into `layer` from their file; False where they are not those of `digest`."""
        path = self.hidden_path(layer)
        shape = (sequences, length, self.runner.program.buffers["x"])
        if digest is None or not path.exists() or path.stat().st_size != 4 * shape[0] * shape[1] * shape[2]:
            return False
        hidden = Activations(*shape, path=path)
        if hidden.digest() != digest:
            hidden.close(delete=False)
            return False
        self._kept = {"x": hidden}
        return True

    def hidden_path(self, layer: int) -> Path:
        """The file of the hidden states into `layer`."""
        return self._folder / f"hidden-{layer % 2}.f32"

    @property
    def hidden(self) -> Activations:
        """The hidden states into the next layer."""
        return self._kept["x"]

    def staged(self, layer: int, tap: Tap, shown: Shown, *, onward: bool = True) -> None:
        """Layer `layer`, linear by linear: `tap` sees a linear's input, then `shown` may replace its weights.

        Each linear runs with the weights it has when the next one is shown. The hidden states become the layer's
        outputs, unless nobody wants them (`onward`); those before stay in their file until the next layer.
        """
        before = self._kept["x"]
        for stage in stages_of(self.runner.program, layer):
            if stage.linear is None and not onward:
                break
            self._run(layer, stage, tap)
            if stage.linear is not None:
                shown(stage.linear)
        self._release(keep=("x",))
        before.close(delete=False)

    def watched(self, layer: int, tap: Tap) -> None:
        """Layer `layer` as it stands, for what its linears see; the hidden states stay those before it."""
        before = self._kept["x"]
        for stage in stages_of(self.runner.program, layer)[:-1]:
            self._run(layer, stage, tap)
        if self._kept["x"] is not before:
            self._kept["x"].close()
        self._kept["x"] = before
        self._release(keep=("x",))

    def passed(self, layer: int) -> None:
        """The hidden states through layer `layer` as it stands, its linears' inputs shown to nobody."""
        before = self._kept["x"]
        after = Activations(*before.shape, path=self.hidden_path(layer + 1))
        with self.runner.stretch(*layer_span(self.runner.program, layer, layer + 1)) as stretch:
            stretch.run_all({"x": before}, after)
        self._kept["x"] = after
        before.close(delete=False)

    def ended(self, tap: Tap) -> None:
        """The last hidden states through the final norm: `tap` sees lm_head's input."""
        runner = self.runner
        begin, end = runner.first_op(runner.num_layers), len(runner.program.ops) - 1
        with runner.stretch(begin, end) as stretch:
            stretch.run_all({"x": self._kept["x"]}, None, tap)

    def close(self) -> None:
        """Let go of all activations; the hidden states' file stays."""
        self._release(keep=("x",))
        for activations in self._kept.values():
            activations.close(delete=False)
        self._kept = {}

    def _run(self, layer: int, stage: Stage, tap: Tap) -> None:
        inputs = {name: self._kept[name] for name in stage.reads}
        if stage.begin == stage.end:  # the linear reads what is kept
            _show(stage.linear, inputs[stage.reads[0]], tap)
            return
        result = None if stage.keeps is None else self._made(layer, stage.keeps)
        with self.runner.stretch(stage.begin, stage.end, stage.keeps) as stretch:
            stretch.run_all(inputs, result, _only(stage.linear, tap))
        if result is not None:
            self._kept[stage.keeps] = result

    def _made(self, layer: int, buffer: str) -> Activations:
        """Where a stage's result goes. Hidden states change in place, but those into the layer stay for a resume."""
        sequences, length, _ = self._kept["x"].shape
        following = self.hidden_path(layer + 1)
        if buffer == "x":
            if self._kept["x"].path == following:
                return self._kept["x"]
            return Activations(sequences, length, self.runner.program.buffers["x"], following)
        self._release(keep=("x",))  # of other buffers only the last one made is ever read again
        width = self.runner.program.buffers[buffer]
        in_memory = 4 * sequences * length * width <= self._memory_bytes
        return Activations(sequences, length, width, None if in_memory else self._folder / f"{buffer}.f32")

    def _release(self, keep: tuple[str, ...]) -> None:
        for name in [name for name in self._kept if name not in keep]:
            self._kept.pop(name).close()


def _only(linear: Op | None, tap: Tap) -> Tap | None:
    """`tap` for the stage's own linear: those inside the stage were shown by the stage before."""
    if linear is None:
        return None

    def narrowed(names: tuple[str, ...], x: np.ndarray) -> None:
        if names == linear.weights:
            tap(names, x)

    return narrowed


def _show(linear: Op, inputs: Activations, tap: Tap) -> None:
    for number in range(inputs.shape[0]):
        tap(linear.weights, inputs.read(number, number + 1)[0])
