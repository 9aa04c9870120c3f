"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

#: Keyword arguments of `generate` that a person can set, and how each is read from text.
SAMPLING: dict[str, Any] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
}

_HELP = {
    "temperature": "0 takes the likeliest token every time",
    "top_k": "draw from the N likeliest tokens; 0 is off",
    "top_p": "draw from the likeliest tokens that together have probability P",
    "min_p": "leave out tokens less likely than P times the likeliest",
    "repetition_penalty": "1 is off",
    "presence_penalty": "0 is off",
    "frequency_penalty": "0 is off",
    "seed": "the same seed draws the same answer",
    "max_tokens": "longest answer, in tokens",
}

CACHE_DTYPES = ("float32", "float16", "int8")
#: Choices of precision that a backend may offer; `edgellm.load` refuses what the one at hand does not.
LM_HEADS = ("int8", "int8-whole", "int4", "int4-whole", "keep")
ACTIVATIONS = ("auto", "int8", "int16")
EVICTIONS = ("shift", "recompute", "error")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The positional MODEL."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a file, a folder or a name (default: the embedded model)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_backend(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where to run and how exactly: --backend, --device, --threads, --lm-head, --activations."""
    group = parser.add_argument_group("where it runs")
    group.add_argument("--backend", metavar="NAME", help="default: the fastest that can run here")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 ...; never replaced by another")
    group.add_argument("--threads", metavar="N", type=positive, help="default: the cores this process may use")
    group.add_argument(
        "--jit",
        dest="kernels",
        action="store_const",
        const="jit",
        help="compile the GPU's kernels from their sources (extras cuda12, cuda13), for people who edit them",
    )
    add_precision(group)
    return group


def add_gpu_layers(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """--gpu-layers."""
    group.add_argument(
        "--gpu-layers",
        metavar="N",
        type=_layers,
        help="decoder layers on the GPU, the rest on the CPU; auto: as many as its memory holds",
    )


def add_precision(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """What is stored and computed in how many bits (CPU backend): --lm-head, --activations."""
    group.add_argument(
        "--lm-head",
        choices=LM_HEADS,
        help="how an unquantized lm_head is stored, and an embedding that it shares: int8 (default); int4, in groups "
        "of 32, half the memory for some accuracy; keep, float16. Of a large one a token of an answer takes the first "
        "2 bits (4 of 8 where sampling leaves all tokens in), and all bits of the rows that may win; int8-whole and "
        "int4-whole: all of it",
    )
    group.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        help="precision of what meets quantized weights: auto (default) is int16 while answering and int8 in prompts",
    )


def add_memory(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """What is planned: --context, --cache-dtype."""
    group.add_argument(
        "--context", "--ctx", metavar="N", type=positive, help="tokens remembered (default: the model's, at most 4096)"
    )
    group.add_argument("--cache-dtype", choices=CACHE_DTYPES, help="how keys and values are stored (default: float16)")


def add_running(parser: argparse.ArgumentParser) -> None:
    """All options of loading a model to run it."""
    group = add_backend(parser)
    add_gpu_layers(group)
    add_memory(group)
    group.add_argument("--force", action="store_true", help="load even where the memory plan does not fit")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are drawn; unset means the model's own generation_config.json, else greedy."""
    group = parser.add_argument_group(
        "how it answers (default: as the model's generation_config.json says, else greedy)"
    )
    for key, kind in SAMPLING.items():
        names = ["--" + key.replace("_", "-")]
        if key == "max_tokens":
            names.insert(0, "-n")
        metavar = "N" if kind is int else "P" if key in ("top_p", "min_p") else "X"
        group.add_argument(*names, metavar=metavar, type=kind, help=_HELP[key])
    group.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this text; may be repeated"
    )


def add_system(parser: argparse.ArgumentParser) -> None:
    """--system, and how the answer is shown: --raw, --no-wrap."""
    parser.add_argument("--system", metavar="TEXT", help="system prompt of the conversation")
    parser.add_argument("--raw", action="store_true", help="do not strip control characters from the model's text")
    parser.add_argument("--no-wrap", action="store_true", help="do not break lines between words on a terminal")


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `generate` that were given.

    Raises:
        UsageError: one is outside its range; said here, before a model is loaded.
    """
    from edgellm.engine.sampling import SamplingParams

    given = {key: getattr(args, key) for key in SAMPLING if getattr(args, key) is not None}
    if args.stop:
        given["stop"] = list(args.stop)
    if getattr(args, "logprobs", None) is not None:
        given["logprobs"] = args.logprobs
    SamplingParams(**given)
    return given


def loading_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `edgellm.load` that were given by `add_running`."""
    keys = ("backend", "device", "gpu_layers", "threads", "context", "cache_dtype", "force")
    return {key: getattr(args, key) for key in keys} | precision_of(args)


def precision_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_precision`, None where not given."""
    given = {"lm_head": args.lm_head, "activations": args.activations}
    kernels = getattr(args, "kernels", None)  # of commands that run a model
    return given if kernels is None else {**given, "kernels": kernels}


def _layers(text: str) -> int | str:
    """A number from 0 on, or "auto"; argparse names the option."""
    return text if text == "auto" else int(text)


def positive(text: str) -> int:
    """An integer above zero; argparse names the option."""
    value = int(text.replace("_", "").replace(",", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: 1 or more")
    return value
