"""`edgellm check`: is this model whole? Every byte is read once, then a few tokens are generated."""

from __future__ import annotations

import contextlib
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.figures import count, size
from edgellm.cli.find_model import find_model
from edgellm.cli.loading import LoadingBar
from edgellm.cli.opening import open_named
from edgellm.cli.parser import Parser
from edgellm.cli.terminal import Terminal
from edgellm.cli.text_filter import strip_controls
from edgellm.errors import ModelError, NumericalError, printable

if TYPE_CHECKING:
    import numpy as np

    from edgellm.model import OpenedModel
    from edgellm.text import Tokenizer

EXIT_DAMAGED = 65
_SMOKE_TOKENS = 8
_MOST_NAMED = 5
_SAMPLES = ("Hello, world!", "  two  spaces\n\tand a tab", "naïve café, 北京, 🙂", "1 + 1 = 2; x[0] <= y")


@dataclass(frozen=True)
class Finding:
    """One check: its name, "ok", "failed" or "skipped", what was found, and how long it took."""

    name: str
    state: str
    detail: str
    seconds: float


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm check`."""
    parser.description = "Whether a model's files are whole and make sense. Exit code 0: yes, 65: no."
    parser.usage = "edgellm check [OPTION ...] [MODEL]"
    options.add_model(parser)
    options.add_json(parser)
    options.add_running(parser)


def run(args: Namespace) -> int:
    """Run all checks, each after the other even where one fails; 66 where nothing is there."""
    terminal = Terminal.of(args)
    path = find_model(args.model)
    findings = []
    for finding in _findings(path, args, terminal):
        findings.append(finding)
        _print(finding, args, terminal)
    damaged = any(finding.state == "failed" for finding in findings)
    if args.json:
        terminal.json({"ok": not damaged, "checks": [asdict(finding) for finding in findings]})
    else:
        word, color = ("damaged", "red") if damaged else ("whole", "green")
        terminal.line(terminal.style(color, word, sys.stdout))
    return EXIT_DAMAGED if damaged else 0


def _findings(path: str | None, args: Namespace, terminal: Terminal) -> Iterator[Finding]:
    with contextlib.ExitStack() as stack:
        opened: list[OpenedModel] = []

        def open_files() -> str:
            opened.append(stack.enter_context(open_named(path)))
            return _describe(opened[0])

        yield _judge("files", open_files)
        if not opened:
            return
        model, tokenizers = opened[0], []
        for name, check in (
            ("stored", lambda: _scan_stored(model, terminal)),
            ("weights", lambda: _scan_weights(model, terminal)),
            ("tokenizer", lambda: _check_tokenizer(model, tokenizers)),
            ("template", lambda: _check_template(model, tokenizers)),
            ("smoke", lambda: _smoke(path, args)),
        ):
            yield _judge(name, check)


def _print(finding: Finding, args: Namespace, terminal: Terminal) -> None:
    """A line a check, as soon as it is done; under --json on stderr."""
    stream = sys.stderr if args.json else sys.stdout
    color = {"ok": "green", "failed": "red"}.get(finding.state, "yellow")
    took = f" ({finding.seconds:.1f} s)" if finding.seconds >= 1 else ""
    state = terminal.style(color, f"{finding.state:<7}", stream)
    line = f"{finding.name:<9} {state} {strip_controls(finding.detail)}{took}"
    if args.json:
        terminal.say(line, "")
    else:
        terminal.write(line + "\n")


class Skipped(Exception):
    """A check that does not apply; the message says why."""


def _judge(name: str, check: Callable[[], str]) -> Finding:
    begin = time.monotonic()
    try:
        state, detail = "ok", check()
    except Skipped as reason:
        state, detail = "skipped", str(reason)
    except (ModelError, NumericalError) as error:  # others are not about the files: they end the command
        state, detail = "failed", str(error)
    return Finding(name, state, detail, round(time.monotonic() - begin, 3))


def _describe(opened: OpenedModel) -> str:
    checkpoint = opened.checkpoint
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    files = len(checkpoint.files)
    notes = f"; {'; '.join(printable(note) for note in opened.notes)}" if opened.notes else ""
    what = f"{files} file{'s' * (files != 1)}, {len(checkpoint.tensors)} tensors, {size(total)}"
    return f"{what}, {count(opened.weights.program.parameters)} parameters, shapes as config.json says{notes}"


def _scan_stored(opened: OpenedModel, terminal: Terminal) -> str:
    """Every tensor as stored: it can be read, and floating point ones are finite."""
    from edgellm.formats.dtypes import FLOAT_DTYPES

    checkpoint = opened.checkpoint
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    done, bad = 0, []
    with LoadingBar(terminal, "reading") as bar:
        for name, info in checkpoint.tensors.items():
            if info.dtype in FLOAT_DTYPES:
                bad += _not_finite(name, checkpoint.read_float32(name))
            else:
                checkpoint.read(name)
            done += info.nbytes
            bar(done, total)
    _refuse(bad, opened)
    return f"all {len(checkpoint.tensors)} tensors were read, no NaN, no infinity"


def _scan_weights(opened: OpenedModel, terminal: Terminal) -> str:
    """Every weight as it will be used: packed ones are unpacked, which proves shapes, permutations and ranges."""
    from edgellm.formats import QuantizedTensor

    weights, bad, packed = opened.weights, [], 0
    if opened.quantization is None:
        raise Skipped("nothing is packed")
    linears = [name for name, spec in weights.program.weights.items() if spec.kind == "linear"]
    with LoadingBar(terminal, "unpacking") as bar:
        for index, name in enumerate(linears):
            if name == "lm_head" and weights.lm_head_is_embedding:
                continue
            weight = weights.linear(name)
            if isinstance(weight, QuantizedTensor):
                packed += 1
                bad += _not_finite(f"{name} (unpacked)", weight.dequantize())
            bar(index + 1, len(linears))
    _refuse(bad, opened)
    return f"{len(linears)} linear layers, {packed} of them packed, were unpacked"


def _not_finite(name: str, array: np.ndarray) -> list[str]:
    import numpy as np

    # One pass without a temporary of the array's size: a sum is finite only where every term is, but may overflow.
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float64)):
            return []
    nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    return [f"{name}: {nans} NaN, {infinities} infinite of {array.size:,}"] if nans or infinities else []


def _refuse(bad: list[str], opened: OpenedModel) -> None:
    if bad:
        more = f" and {len(bad) - _MOST_NAMED} more tensors" if len(bad) > _MOST_NAMED else ""
        found = "; ".join(bad[:_MOST_NAMED]) + more
        raise ModelError(f"values that are no numbers: {found}", file=opened.path)


def _check_tokenizer(opened: OpenedModel, loaded: list[Tokenizer]) -> str:
    """Samples survive encoding and decoding; where one does not, the normalization is named, it may be the model's."""
    from edgellm.text import load_tokenizer

    tokenizer = load_tokenizer(opened.side_files, vocab_size=opened.config.vocab_size)
    loaded.append(tokenizer)
    changed = []
    for sample in _SAMPLES:
        ids = tokenizer.encode(sample, add_special_tokens=False)
        if not ids:
            raise ModelError("the tokenizer gives no tokens for a sample", file=tokenizer.file, found=repr(sample))
        if tokenizer.decode(ids) != sample:
            changed.append(repr(sample))
    what = f"{tokenizer.kind}, {tokenizer.vocab_size} ids of {opened.config.vocab_size}"
    if changed:
        return f"{what}; {len(changed)} of {len(_SAMPLES)} samples come back changed, the first is {changed[0]}"
    return f"{what}; {len(_SAMPLES)} samples come back equal"


def _check_template(opened: OpenedModel, loaded: list[Tokenizer]) -> str:
    from edgellm.text import encode_chat, load_chat_template

    if not loaded:
        raise Skipped("no tokenizer")
    template = load_chat_template(opened.side_files, loaded[0])
    if template is None:
        raise Skipped("this model has no chat template")
    turns = [("user", "Hello"), ("assistant", "Hi."), ("user", "Bye")]
    messages = [{"role": role, "content": content} for role, content in turns]
    first, both = (len(encode_chat(loaded[0], template, part)) for part in (messages[:1], messages))
    if not 0 < first < both:
        raise ModelError(
            "three messages render no longer than one", file=template.name, found=f"{first}, {both} tokens"
        )
    return f"{template.name}; 1 message {first} tokens, 3 messages {both}"


def _smoke(path: str | None, args: Namespace) -> str:
    import edgellm

    loading: dict[str, Any] = {**options.loading_of(args), "context": args.context or 64}
    with edgellm.load(path, **loading) as llm:
        result = llm.generate("Hello", max_tokens=_SMOKE_TOKENS, temperature=0, ignore_eos=True)
        backend = llm.info["backend"]
    return f"{len(result.tokens)} greedy tokens with {backend}: {printable(repr(result.text), 60)}"
