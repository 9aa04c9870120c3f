"""Structured pruning: fewer layers, KV groups and MLP channels, so that what is left runs faster by its shapes.

    prune(opened, PruneRecipe(ffn=0.2, layers=1), calibration_ids, "smaller")

The work is in `prune_layers`, one layer's weights in memory at a time.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.prune_layers import LayerCuts, PruneProgress, Pruning
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.prune_write import write_pruned
from edgellm.errors import ModelError, UsageError
from edgellm.model import OpenedModel

_POST_NORMS = (
    "the norms of this architecture follow its blocks: behind a cut, weights are re-fitted to what they gave before it "
    '(refit "layer" in place of "source"), and nothing makes up for whole layers that went'
)
_ZEROS = "weights became zeros, for research: the model is as large and as slow as its source"


@dataclass(frozen=True)
class PruneReport:
    """What was pruned.

    Attributes:
        removed_layers: numbers in the source. influences: block influence of every layer of the source, where it was
            asked for.
        layers: what happened to each that stays.
        parameters, parameters_before: counts. nbytes, nbytes_before: of all tensors written, and of the source's.
        tokens: calibration tokens. seconds: wall time.
        notes: what a person should know.
    """

    removed_layers: tuple[int, ...]
    influences: tuple[float, ...]
    layers: tuple[LayerCuts, ...]
    parameters: int
    parameters_before: int
    nbytes: int
    nbytes_before: int
    tokens: int
    seconds: float
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; of the lists of channels only their lengths."""
        facts = {key: value for key, value in vars(self).items() if key != "layers"}
        facts["layers"] = [
            {
                "layer": entry.layer,
                "groups": entry.groups.tolist(),
                "channels": len(entry.channels),
                "attention": None if entry.attention is None else asdict(entry.attention),
                "mlp": None if entry.mlp is None else asdict(entry.mlp),
            }
            for entry in self.layers
        ]
        return facts


def prune(
    opened: OpenedModel,
    recipe: PruneRecipe,
    calibration: np.ndarray,
    out: str | Path,
    *,
    progress: PruneProgress | None = None,
    scratch: str | Path | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
) -> PruneReport:
    """Prune a checkpoint and write a Hugging Face checkpoint to the folder `out`.

    Args:
        opened: the source, in floating point.
        recipe: what goes.
        calibration: token ids int32 [N, L].
        out: see `formats.save_checkpoint`.
        progress: see `PruneProgress`.
        scratch: folder for temporary files, by default beside `out`.
        max_memory: bytes of hidden states above which they are kept in a file.
        overwrite: replace what is at `out`.

    Raises:
        UsageError: the recipe does not fit the model, or the calibration is empty.
        ModelError: the source is quantized or damaged. NumericalError: NaN or infinity on the way.
        OutputError: nothing can be written there; what was there is untouched.
    """
    start = time.monotonic()
    _check(opened, recipe, calibration)
    out = Path(out)
    parent = Path(scratch) if scratch is not None else _existing(out)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent)))
        pruning = Pruning(opened, recipe, calibration, folder, max_memory, progress)
        stack.callback(pruning.close)
        removed, survey = pruning.choose_layers()
        kept = [layer for layer in range(opened.config.num_hidden_layers) if layer not in removed]
        cuts = pruning.cut_layers(kept, survey)
        written = write_pruned(opened, cuts, pruning.spill, out, overwrite=overwrite)
    return PruneReport(
        removed_layers=tuple(removed),
        influences=tuple(survey.influences) if survey is not None else (),
        layers=tuple(cuts),
        parameters=written.parameters,
        parameters_before=opened.weights.program.parameters,
        nbytes=written.nbytes,
        nbytes_before=sum(info.nbytes for info in opened.checkpoint.tensors.values()),
        tokens=int(calibration.size),
        seconds=time.monotonic() - start,
        notes=(*written.notes, *_notes(opened, recipe)),
    )


def _notes(opened: OpenedModel, recipe: PruneRecipe) -> list[str]:
    if recipe.sparsity is not None:
        return [_ZEROS]
    return [_POST_NORMS] if recipe.refit == "source" and opened.config.post_norms else []


def _check(opened: OpenedModel, recipe: PruneRecipe, calibration: np.ndarray) -> None:
    if opened.quantization is not None:
        hint = "Prune the checkpoint that it was made from, and quantize what comes out."
        raise ModelError("is quantized, and pruning needs floating point weights", file=opened.path, hint=hint)
    recipe.check(opened.config)
    if calibration.ndim != 2 or not calibration.size:
        raise UsageError("must be [N, L] token ids", key="calibration", found=list(calibration.shape))
    if calibration.min() < 0 or calibration.max() >= opened.config.vocab_size:
        allowed = f"0 to {opened.config.vocab_size - 1}"
        raise UsageError("no such token id", key="calibration", found=int(calibration.max()), allowed=allowed)


def _existing(out: Path) -> Path:
    return next(folder for folder in out.absolute().parents if folder.exists())
