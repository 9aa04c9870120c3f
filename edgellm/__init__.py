"""edgellm: a language-model runtime for the edge, in Python.

    import edgellm

    with edgellm.load("model.safetensors") as llm:
        print(llm.generate("Once upon a time", max_tokens=64))
        chat = llm.chat(system="Be brief.")
        for piece in chat.send("Hello!", stream=True):
            print(piece.text, end="", flush=True)

Importing this module imports no third party; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgellm._version import __version__
from edgellm.errors import (
    BackendUnavailable,
    ContextLengthError,
    EdgeLLMError,
    EngineBusy,
    EngineClosed,
    InputError,
    ModelError,
    NumericalError,
    OutOfMemoryError,
    OutputError,
    TemplateError,
    TokenizerError,
    UsageError,
)

if TYPE_CHECKING:
    from edgellm.api.converting import convert
    from edgellm.api.estimating import Estimate, estimate
    from edgellm.api.evaluating import evaluate
    from edgellm.api.inspecting import inspect
    from edgellm.api.llm import LLM
    from edgellm.api.loading import load
    from edgellm.api.scoring import Score
    from edgellm.convert.evaluate import Divergence, Evaluation
    from edgellm.engine.conversation import Conversation
    from edgellm.engine.results import Piece, Result, Timings, TokenLogprob, Usage
    from edgellm.engine.sampling import SamplingParams
    from edgellm.engine.stream import Stream

_LAZY = {
    "Conversation": "edgellm.engine.conversation",
    "Divergence": "edgellm.convert.evaluate",
    "Estimate": "edgellm.api.estimating",
    "Evaluation": "edgellm.convert.evaluate",
    "LLM": "edgellm.api.llm",
    "Piece": "edgellm.engine.results",
    "Result": "edgellm.engine.results",
    "SamplingParams": "edgellm.engine.sampling",
    "Score": "edgellm.api.scoring",
    "Stream": "edgellm.engine.stream",
    "Timings": "edgellm.engine.results",
    "TokenLogprob": "edgellm.engine.results",
    "Usage": "edgellm.engine.results",
    "estimate": "edgellm.api.estimating",
    "evaluate": "edgellm.api.evaluating",
    "inspect": "edgellm.api.inspecting",
    "load": "edgellm.api.loading",
}

__all__ = [
    "LLM",
    "BackendUnavailable",
    "ContextLengthError",
    "Conversation",
    "Divergence",
    "EdgeLLMError",
    "EngineBusy",
    "EngineClosed",
    "Estimate",
    "Evaluation",
    "InputError",
    "ModelError",
    "NumericalError",
    "OutOfMemoryError",
    "OutputError",
    "Piece",
    "Result",
    "SamplingParams",
    "Score",
    "Stream",
    "TemplateError",
    "Timings",
    "TokenLogprob",
    "TokenizerError",
    "Usage",
    "UsageError",
    "__version__",
    "convert",
    "estimate",
    "evaluate",
    "inspect",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "convert":  # a room that can be called, see there
        return importlib.import_module("edgellm.convert")
    if name not in _LAZY:
        raise AttributeError(f"module 'edgellm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
