"""A model against its source on held-out text, with one decoder block of one of them in memory at a time.

What `edgellm eval --against` finds with both models loaded is found here in the memory of a conversion: the hidden
states of all rows go through the source block by block, then through the model, and only the two output layers are
held together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner, Stretch
from edgellm.convert.evaluate import Evaluation, Logits, Sums, count_window, summarize
from edgellm.convert.windows import Window
from edgellm.errors import UsageError
from edgellm.model import OpenedModel
from edgellm.model.cut import layer_span

_LOGITS_BYTES = 16 << 20
_EMBEDDED_TOKENS = 8192


def compare_on_rows(
    model: OpenedModel,
    source: OpenedModel | None,
    rows: np.ndarray,
    *,
    source_ids: np.ndarray | None = None,
    context: int = 1,
    nbytes: int = 0,
    scratch: Path | None = None,
    done: Callable[[int], None] | None = None,
) -> Evaluation:
    """Perplexity of rows of token ids, and KL(source || model) and top-1 agreement where a source is given.

    Args:
        model: what was made. source: what it was made from.
        source_ids: the source's ids in the order of the model's, where the vocabulary was cut: int64 [vocab_size]. Then
            the source too chooses among these alone. None for the same ids.
        rows: int32 [N, L], each read by itself.
        context: ids at the start of each row that are not counted, at least one (BOS, or the first).
        nbytes: bytes of text that is counted, for bits per byte.
        scratch: folder for hidden states; None keeps them in memory, 8 * N * L * hidden_size bytes with a source.
        done: called with the tokens that went through a block.

    Raises:
        UsageError: rows too short. NumericalError: NaN or infinity.
    """
    if rows.ndim != 2 or not 1 <= context < rows.shape[1]:
        raise UsageError("too short", key="rows", found=list(rows.shape), allowed=f"[N, more than {context}]")
    sums = Sums()
    with ExitStack() as stack:
        folder = None
        if scratch is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".held-out.", dir=scratch)))
        heads = []
        for number, opened in enumerate([model] if source is None else [model, source]):
            runner = BlockRunner(opened)
            path = None if folder is None else folder / str(number)
            ids = rows if number == 0 or source_ids is None else source_ids[rows]
            hidden = _through_blocks(runner, ids, path, stack, done)
            begin = layer_span(runner.program, runner.num_layers - 1, runner.num_layers)[1]
            stretch = stack.enter_context(runner.stretch(begin, len(runner.program.ops)))
            heads.append((stretch, hidden, opened, source_ids if number else None))
        for number, row in enumerate(rows):
            logits = [_logits_of(stretch, hidden, number, opened, ids) for stretch, hidden, opened, ids in heads]
            count_window(sums, Window(row.tolist(), context), *logits)
    length = rows.shape[1]
    return summarize(sums, window=length, stride=length - context, nbytes=nbytes, excluded=0)


def _through_blocks(
    runner: BlockRunner, rows: np.ndarray, path: Path | None, stack: ExitStack, done: Callable[[int], None] | None
) -> Activations:
    """Hidden states out of the last block, [N, L, D]."""
    hidden = Activations(*rows.shape, runner.program.config.hidden_size, path=path)
    stack.callback(hidden.close)
    step = max(_EMBEDDED_TOKENS // rows.shape[1], 1)
    with runner.stretch(0, layer_span(runner.program, 0, 1)[0]) as stretch:
        for first in range(0, len(rows), step):
            hidden.write(first, stretch.run_ids(np.ascontiguousarray(rows[first : first + step], np.int32)))
    for layer in range(runner.num_layers):
        with runner.stretch(*layer_span(runner.program, layer, layer + 1)) as stretch:
            stretch.run_all({"x": hidden}, hidden)
        if done is not None:
            done(rows.size)
    return hidden


def _logits_of(stretch: Stretch, hidden: Activations, row: int, opened: OpenedModel, ids: np.ndarray | None) -> Logits:
    """The logits of one row, a few MiB at a time; of the ids `ids` alone where there are some."""

    def logits(tokens: Sequence[int], wanted: int) -> Iterator[tuple[int, np.ndarray]]:
        states = hidden.read(row, row + 1)
        step = max(_LOGITS_BYTES // (4 * opened.config.vocab_size), 1)
        for first in range(wanted, len(tokens), step):
            found = stretch.run({"x": states[:, first : first + step]})[0]
            yield first, found if ids is None else found[:, ids]

    return logits
