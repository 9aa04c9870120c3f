"""What a model's authors say about generating with it: `generation_config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.model.config import ModelConfig
from edgellm.model.reader import ObjectReader
from edgellm.sidefiles import SideFiles, read_side_json

_MAX_EOS = 64


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults for sampling; None where the file says nothing.

    Attributes:
        eos_token_ids: ids that end an answer; the tokenizer may add its own.
        do_sample: greedy where False.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_defaults(files: SideFiles, config: ModelConfig) -> GenerationDefaults:
    """The defaults in generation_config.json, token ids falling back to config.json.

    Raises:
        ModelError: a value out of range.
    """
    top = config.vocab_size - 1
    model = ObjectReader(read_side_json(files, "config.json") or {}, files.locate("config.json"))
    reader = ObjectReader(read_side_json(files, "generation_config.json") or {}, files.locate("generation_config.json"))
    own_eos = reader.integers("eos_token_id", 0, top, _MAX_EOS)
    model_eos = model.integers("eos_token_id", 0, top, _MAX_EOS)
    return GenerationDefaults(
        eos_token_ids=own_eos or model_eos,
        bos_token_id=reader.integer("bos_token_id", 0, top, model.integer("bos_token_id", 0, top, None)),
        do_sample=reader.flag("do_sample", False),
        temperature=reader.number("temperature", 0.0, 100.0, None),
        top_k=reader.integer("top_k", 0, 1 << 22, None),
        top_p=reader.number("top_p", 1e-9, 1.0, None),
        min_p=reader.number("min_p", 0.0, 1.0, None),
        repetition_penalty=reader.number("repetition_penalty", 1e-3, 100.0, None),
    )
