"""The report of a conversion: what pruning and quantizing cost, on held-out text too where there is one."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgellm.api import memory

if TYPE_CHECKING:
    import numpy as np

    from edgellm.convert.pipeline import ConversionResult
    from edgellm.convert.prune_stage import Pruned
    from edgellm.convert.recipe import Recipe
    from edgellm.convert.report import Report, Stage
    from edgellm.model import OpenedModel

#: Sequences and tokens of each that held-out text is measured on, at most.
_HELD_OUT = (32, 512)


class Account:
    """What a conversion costs, noted on its way.

    Args:
        opened: the source.
        recipe: of the conversion.
        out: where it goes.
        held_out: a text to measure quality on, None for none.
    """

    def __init__(
        self, opened: OpenedModel, recipe: Recipe, out: str | os.PathLike[str], held_out: str | os.PathLike[str] | None
    ) -> None:
        self._opened, self._recipe, self._out, self._held_out = opened, recipe, out, held_out
        self._start = time.perf_counter()
        self._stages: list[Stage] = []
        self._rows: tuple[np.ndarray, int] | None = None

    def read_held_out(self, model: OpenedModel) -> None:
        """Cut the held-out text into `model`'s tokens. Raises: as `load_calibration`."""
        if self._held_out is None:
            return
        from edgellm.convert.calibration import load_calibration
        from edgellm.text import load_tokenizer

        length = min(_HELD_OUT[1], model.config.max_position_embeddings)
        rows = load_calibration(model, self._held_out, sequences=_HELD_OUT[0], length=length).token_ids
        tokenizer = load_tokenizer(model.side_files, vocab_size=model.config.vocab_size)
        texts = (tokenizer.decode(row[1:].tolist(), skip_special_tokens=False) for row in rows)
        self._rows = rows, sum(len(text.encode("utf-8", "replace")) for text in texts)

    def measure(self, label: str, model: OpenedModel, pruned: Pruned | None) -> None:
        """Note the quality of `model` against the source, where there is held-out text. Raises `NumericalError`."""
        if self._rows is None:
            return
        from edgellm.convert.held_out import compare_on_rows
        from edgellm.convert.report import Stage

        rows, nbytes = self._rows
        kept = None if pruned is None else pruned.kept_ids
        found = compare_on_rows(model, self._opened, rows, source_ids=kept, nbytes=nbytes)
        self._stages.append(Stage(label, _tensor_bytes(model), found))

    def report(self, pruned: Pruned | None, result: ConversionResult | None) -> Report:
        """The report of what was pruned and quantized, either None where it was not."""
        from edgellm.convert.report import LinearCost, Report

        notes = [*(() if pruned is None else pruned.notes), *(() if result is None else result.notes)]
        linears = () if pruned is None else pruned.linears
        if result is not None:
            linears += tuple(
                LinearCost(entry.name, entry.error, entry.bits, entry.group_size, entry.loss)
                for entry in result.linears
            )
            if result.resumed_pieces:
                notes.append(f"{result.resumed_pieces} pieces were done by an earlier run; their errors are not listed")
        if pruned is not None and pruned.kept_ids is not None and self._stages:
            notes.append("perplexity and KL: the source chooses among the ids that were kept, over the cut vocabulary")
        before = _tensor_bytes(self._opened)
        return Report(
            source=self._opened.path,
            output=os.path.abspath(self._out),
            method=self._method(pruned, result),
            source_bytes=before,
            output_bytes=self._output_bytes(pruned, result),
            bits_per_weight=None if result is None else result.bits_per_weight,
            seconds=round(time.perf_counter() - self._start, 3),
            peak_bytes=memory.peak_bytes() or None,
            settings=self._settings(),
            linears=linears,
            stages=tuple(self._stages),
            held_out=None if self._held_out is None else os.fspath(self._held_out),
            pruning=None if pruned is None else pruned.facts,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _method(self, pruned: Pruned | None, result: ConversionResult | None) -> str:
        parts = [] if pruned is None else ["prune"]
        return " + ".join([*parts, *([] if result is None else [self._recipe.method])])

    def _output_bytes(self, pruned: Pruned | None, result: ConversionResult | None) -> int:
        if result is not None:
            return result.output_bytes
        facts = pruned.facts if "nbytes" in pruned.facts else pruned.facts["vocabulary"]
        return facts["nbytes"]

    def _settings(self) -> dict[str, Any]:
        return {**asdict(self._recipe), "overrides": dict(self._recipe.overrides)}


def _tensor_bytes(opened: OpenedModel) -> int:
    return sum(info.nbytes for info in opened.checkpoint.tensors.values())
