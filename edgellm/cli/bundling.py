"""`edgellm convert --bundle`: a model in one file, its config and tokenizer inside."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm.cli.figures import size
from edgellm.cli.places import short
from edgellm.cli.terminal import Terminal
from edgellm.errors import OutputError, UsageError

_SUFFIX = ".safetensors"


def check_bundle(path: str, overwrite: bool) -> None:
    """Say what can be said of the bundle's name before hours are spent. Raises `UsageError`, `OutputError`."""
    if not path.endswith(_SUFFIX):
        raise UsageError("not a safetensors file", key="--bundle", found=path, allowed=f"a name that ends in {_SUFFIX}")
    if os.path.lexists(path) and not overwrite:
        raise OutputError("is there already", file=path, hint="Choose another name, or ask to --overwrite it.")


def write(source: str | os.PathLike[str] | None, path: str, terminal: Terminal, *, as_json: bool) -> None:
    """Copy a model into one file; None is the embedded one. Raises as `formats.write_bundle`."""
    from edgellm.api.embedded import embedded_path
    from edgellm.formats import write_bundle

    written = write_bundle(embedded_path() if source is None else source, path)
    nbytes = Path(written).stat().st_size
    if as_json:
        terminal.json({"bundle": str(written), "bytes": nbytes})
    else:
        terminal.say(f"wrote {short(path)}, {size(nbytes)}")
