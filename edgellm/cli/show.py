"""`edgellm show`: what is in a model, from its headers; no weight is read unless --hash asks."""

from __future__ import annotations

import hashlib
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.figures import count, size
from edgellm.cli.find_model import find_model
from edgellm.cli.loading import LoadingBar
from edgellm.cli.opening import open_named
from edgellm.cli.parser import Parser
from edgellm.cli.places import short
from edgellm.cli.terminal import Terminal
from edgellm.errors import InputError, ModelError, printable

if TYPE_CHECKING:
    from edgellm.model import OpenedModel

_BLOCK_BYTES = 1 << 20


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm show`."""
    options.add_model(parser)
    parser.add_argument("--tensors", action="store_true", help="name, dtype and shape of every stored tensor")
    parser.add_argument("--program", action="store_true", help="the ops this model runs, after fusion")
    parser.add_argument("--unfused", action="store_true", help="with --program: before fusion")
    parser.add_argument("--hash", action="store_true", help="sha256 of every file of weights")
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print the facts."""
    import edgellm

    terminal = Terminal.of(args)
    path = find_model(args.model)
    facts = edgellm.inspect(path)
    with open_named(path) as opened:
        facts["stop_tokens"] = _stop_tokens(opened)
        facts |= _more(opened, args, terminal)
    if args.json:
        terminal.json(facts)
    else:
        _print(facts, terminal)
    return 0


def _stop_tokens(opened: OpenedModel) -> dict[str, str] | None:
    """The text of each token that ends an answer, by id; None where the tokenizer cannot be used."""
    from edgellm.text import load_tokenizer

    try:
        tokenizer = load_tokenizer(opened.side_files, vocab_size=opened.config.vocab_size)
    except ModelError:
        return None
    ids = {*opened.generation.eos_token_ids, tokenizer.eos_token_id} - {None}
    return {str(token): tokenizer.decode([token]) for token in sorted(ids)}


def _more(opened: OpenedModel, args: Namespace, terminal: Terminal) -> dict[str, Any]:
    more: dict[str, Any] = {}
    checkpoint = opened.checkpoint
    if args.hash:
        more["sha256"] = {str(file): _sha256(file, terminal) for file in checkpoint.files}
    if args.tensors:
        more["tensors_list"] = [
            {"name": name, "dtype": info.dtype, "shape": list(info.shape), "file": Path(info.file).name}
            for name, info in checkpoint.tensors.items()
        ]
    if args.program or args.unfused:
        from edgellm.model.fusion import fuse
        from edgellm.model.program import build_program

        program = build_program(opened.config)
        more["program"] = (program if args.unfused else fuse(program)).table().splitlines()
    return more


def _sha256(file: Path, terminal: Terminal) -> str:
    digest, done = hashlib.sha256(), 0
    try:
        total = os.path.getsize(file)
        with LoadingBar(terminal, "hashing") as bar, open(file, "rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                bar(done, total)
    except OSError as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    return digest.hexdigest()


def _print(facts: dict[str, Any], terminal: Terminal) -> None:
    blocks = {key: facts.pop(key) for key in ("sha256", "tensors_list", "program") if key in facts}
    print_facts(facts, terminal)
    for file, digest in blocks.get("sha256", {}).items():
        terminal.line(f"sha256  {digest}  {printable(short(file), 300)}")
    tensors = blocks.get("tensors_list", [])
    width = max((len(printable(entry["name"])) for entry in tensors), default=0)
    for entry in tensors:
        terminal.line(f"{printable(entry['name']):<{width}}  {entry['dtype']:<5} {_shape(entry['shape'])}")
    for line in blocks.get("program", []):
        terminal.line(printable(line, 600))


def print_facts(facts: dict[str, Any], terminal: Terminal, indent: str = "") -> None:
    """Nested facts as aligned lines; what has no value is left out."""
    import sys

    shown = {key: value for key, value in facts.items() if value not in (None, "", [], (), {})}
    width = max((len(key) for key in shown if not isinstance(shown[key], dict)), default=0)
    for key, value in shown.items():
        name = terminal.style("bold", key.ljust(width), sys.stdout)
        if key == "notes":
            for note in value:
                terminal.line(f"{indent}{name}  {_value(key, note)}")
        elif isinstance(value, dict):
            terminal.line(f"{indent}{name.rstrip()}")
            print_facts(value, terminal, indent + "  ")
        else:
            terminal.line(f"{indent}{name}  {_value(key, value)}")


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (key.endswith("_bytes") or key == "bytes"):
        return f"{size(value)} ({value:,} bytes)"
    if isinstance(value, int) and key == "parameters":
        return f"{count(value)} ({value:,})"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(key, entry) for entry in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={_value(name, entry)}" for name, entry in value.items())
    if isinstance(value, (str, Path)):
        return printable(short(str(value)), 300)
    return str(value)


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
