"""Load a model for a command: a progress bar where a person waits, and the line that says what runs where."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from edgellm.api.embedded import NAME
from edgellm.cli.compiling import Compiling
from edgellm.cli.figures import count, size
from edgellm.cli.find_model import find_model
from edgellm.cli.options import loading_of
from edgellm.cli.places import short
from edgellm.cli.terminal import Terminal, is_terminal

if TYPE_CHECKING:
    from edgellm import LLM

_BAR_AFTER_S, _ETA_AFTER_S = 2.0, 10.0


class LoadingBar:
    """A bar on stderr once loading has taken two seconds, with the time left where it will take over ten.

    Call it with (bytes done, bytes in all); use it as a context manager, so that nothing is left on the screen.
    """

    def __init__(self, terminal: Terminal, what: str = "loading") -> None:
        self._shown = is_terminal(sys.stderr) and not terminal.quiet
        self._color = terminal.colored(sys.stderr)
        self._what = what
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._start
        if not self._shown or elapsed < _BAR_AFTER_S or total <= 0:
            return
        if self._bar is None:
            self._begin(elapsed * total / max(done, 1))
        self._bar.update(self._task, completed=done, total=total)

    def hide(self) -> None:
        """Take the bar away, as if loading had just begun; it comes again when that has taken its time."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._start = time.monotonic()

    def _begin(self, expected_s: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
        if expected_s > _ETA_AFTER_S:
            columns.append(TimeRemainingColumn())
        console = Console(stderr=True, no_color=not self._color)
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(self._what, total=None)
        self._bar.start()


def load(args: Namespace, terminal: Terminal) -> LLM:
    """The model that `args` name, loaded; says what it is on stderr. Raises what `edgellm.load` raises."""
    import edgellm

    path = find_model(args.model)
    bar = LoadingBar(terminal)
    with Compiling(terminal, make_room=bar.hide), bar:
        llm = edgellm.load(path, progress=bar, **loading_of(args))
    terminal.say(start_line(llm.info, embedded=path is None))
    for note in llm.info.get("notes", ()):
        terminal.detail(f"note: {note}")
    return llm


def start_line(info: dict[str, Any], *, embedded: bool = False) -> str:
    """One line: model, backend, device, ISA, threads, weights, context."""
    where = [str(info[key]) for key in ("device", "isa") if info.get(key)]
    parts = [
        f"{NAME} (the embedded model)" if embedded else short(str(info.get("path", ""))),
        f"{count(info['parameters'])} parameters" if info.get("parameters") else "",
        f"{info.get('backend')} on {' '.join(where)}" if where else str(info.get("backend")),
        _threads(info.get("threads")),
        _weights(info),
        f"context {info['context']} {info.get('cache_dtype') or ''}".rstrip() if info.get("context") else "",
    ]
    return " · ".join(part for part in parts if part)


def _threads(threads: int | str | None) -> str:
    if isinstance(threads, int):
        return f"{threads} thread{'s' * (threads != 1)}"
    return f"threads: {threads}" if threads else ""


def _weights(info: dict[str, Any]) -> str:
    stored, held = info.get("quantization"), info.get("weights")
    published = f"{stored['bits']}-bit {stored['quant_method']} as " if stored else ""
    head = f" (lm_head {info['lm_head']})" if info.get("lm_head") else ""
    return f"weights {published}{held}, {size(info['weight_bytes'])}{head}"
