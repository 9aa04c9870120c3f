"""`edgellm.load`: from a path to a model that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from edgellm.api import memory, planning
from edgellm.api.estimating import fits
from edgellm.api.llm import LLM
from edgellm.api.side_text import load_text
from edgellm.backends.interface import Cache, Runner
from edgellm.engine.engine import Engine
from edgellm.engine.sampling import SamplingParams
from edgellm.errors import ModelError, OutOfMemoryError, UsageError
from edgellm.formats import fingerprint
from edgellm.model import OpenedModel
from edgellm.text import ChatTemplate, Tokenizer, encode_chat


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    backend: str | None = None,
    device: str | None = None,
    context: int | None = None,
    threads: int | None = None,
    cache_dtype: str | None = None,
    slots: int = 1,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
    lm_head: str | None = None,
    activations: str | None = None,
    gpu_layers: int | str | None = None,
    kernels: str | None = None,
) -> LLM:
    """Load a model.

    Args:
        path: a safetensors file, a folder or a bundle; None is the embedded model.
        backend: "reference", "cpu", "cuda"; None takes the fastest that can run here.
        device: "cpu", "cuda", "cuda:1"; never replaced by another.
        context: tokens a slot holds; None: what the model was made for, at most 4096.
        threads: of the backend; None lets it choose.
        cache_dtype: "float32", "float16" or "int8" for keys and values everywhere; None: float16 in slots, float32 in
            `score` and `logits`.
        slots: sequences at the same time.
        progress: called with (bytes done, bytes in all).
        force: load even where the plan says that memory will not suffice.
        lm_head: how an unquantized lm_head is stored, and an embedding that it shares: "int8", "int4" (half of the
            bytes, for some accuracy) or "keep" (float16). Of a large one of 8 or 4 bits a step that only draws a token
            reads the first 2 bits (4 of 8 where sampling leaves all tokens in), and all of those rows that may win;
            "int8-whole" and "int4-whole" read all of it. None: the backend's default, on the CPU "int8"; a backend that
            has no such choice refuses any other.
        activations: precision of what meets quantized weights: "auto" (16 bits while decoding, 8 in prefill), "int8" or
            "int16"; None likewise, on the CPU "auto".
        gpu_layers: how many decoder layers go on the GPU, the rest on the CPU, where its memory is short; "auto": as
            many as fit. None: all on one backend.
        kernels: of backend cuda: "shipped" (None), or "jit" to compile them from their sources, which needs an extra,
            cuda12 or cuda13.

    Raises:
        InputError: a file is missing. ModelError: a file is damaged or not supported.
        UsageError: an argument outside its range.
        BackendUnavailable: no such backend or device here.
        OutOfMemoryError: the plan does not fit; nothing was allocated.
    """
    if threads is not None:
        planning.check_count("threads", threads, planning.MAX_THREADS)
    if progress is not None and not callable(progress):
        raise UsageError("not callable", key="progress", found=type(progress).__name__)
    # the text files first: their library lets nobody else's Python run for 0.2 s, while LLVM and the kernel need none
    with planning.open_path(path) as opened, ThreadPoolExecutor(1, "edgellm-text") as pool:
        text = pool.submit(load_text, opened)
        plan = planning.make_plan(
            opened,
            backend=backend,
            device=device,
            context=context,
            cache_dtype=cache_dtype,
            slots=slots,
            gpu_layers=gpu_layers,
            options={"lm_head": lm_head, "activations": activations, "kernels": kernels},
        )
        return _loaded(plan, text, threads, progress, force)


def _loaded(
    plan: planning.Plan,
    text: Future[tuple[Tokenizer, ChatTemplate | None]],
    threads: int | None,
    progress: Callable[[int, int], None] | None,
    force: bool,
) -> LLM:
    """The memory check first, then the weights while the text files are loaded: what fails cheaply fails early."""
    opened = plan.opened
    defaults = _defaults(opened)
    if not force:
        _check_memory(plan)

    def unless_text_fails(done: int, total: int) -> None:
        if text.done():
            text.result()
        if progress is not None:
            progress(done, total)

    options = {"device": plan.device, "threads": threads, "progress": unless_text_fails, **plan.options}
    runner = plan.backend.load(plan.program, opened.weights, **options)
    try:
        cache = runner.new_cache(plan.geometry, plan.slots)
        tokenizer, template = text.result()
        return LLM(
            Engine(runner, cache, plan.slots),
            tokenizer,
            template=template,
            render=None if template is None else partial(_render, tokenizer, template),
            eos_token_ids={*opened.generation.eos_token_ids, tokenizer.eos_token_id} - {None},
            defaults=defaults,
            score_dtype=plan.score_dtype,
            info=_info(plan, runner, cache, tokenizer, template),
            identity=fingerprint(opened.checkpoint),
        )
    except BaseException:
        runner.close()
        raise


def _render(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> list[int]:
    return encode_chat(tokenizer, template, messages, add_generation_prompt=add_generation_prompt)


def _defaults(opened: OpenedModel) -> SamplingParams:
    """The sampling that the model's authors ask for, greedy where they ask for none. Raises `ModelError`."""
    given = opened.generation
    if not given.do_sample:
        return SamplingParams()
    try:
        return SamplingParams(temperature=1.0).updated(
            temperature=given.temperature,
            top_k=given.top_k,
            top_p=given.top_p,
            min_p=given.min_p,
            repetition_penalty=given.repetition_penalty,
        )
    except UsageError as error:
        file = opened.side_files.locate("generation_config.json")
        raise ModelError(error.what, file=file, key=error.key, found=error.found, allowed=error.allowed) from None


def _check_memory(plan: planning.Plan) -> None:
    on_device = plan.memory.on_device
    if on_device is not None and not fits(on_device.peak, on_device.available):
        raise OutOfMemoryError(
            f"the model needs {on_device.peak:,} bytes of the GPU's memory and {on_device.available:,} are free, of "
            f"which {memory.reserve_bytes(on_device.available):,} are kept back",
            file=plan.opened.path,
            key=on_device.device,
            hint="Put fewer layers on it (--gpu-layers auto), lower context or slots, take a smaller cache_dtype, or "
            "say force to try all the same.",
        )
    available = memory.available_bytes()
    needed = plan.memory.peak
    if fits(needed, available):
        return
    raise OutOfMemoryError(
        f"the model needs {needed:,} bytes and {available:,} are available, of which "
        f"{memory.reserve_bytes(available):,} are kept back",
        file=plan.opened.path,
        hint="Lower context or slots, take a smaller cache_dtype or model, or say force to try all the same.",
    )


def _info(
    plan: planning.Plan, runner: Runner, cache: Cache, tokenizer: Tokenizer, template: ChatTemplate | None
) -> dict[str, Any]:
    opened, config = plan.opened, plan.opened.config
    described = dict(runner.describe())
    quantization = opened.quantization
    return {
        **described,
        "path": opened.path,
        "architecture": config.architecture.name,
        "model_type": config.model_type,
        "parameters": plan.program.parameters,
        "quantization": None if quantization is None else quantization.facts(),
        "context": plan.geometry.context,
        "max_position_embeddings": config.max_position_embeddings,
        "cache_dtype": plan.geometry.dtype,
        "slots": plan.slots,
        "backend": described.get("backend", plan.backend.name),
        "device": described.get("device"),
        "isa": described.get("isa"),
        "threads": described.get("threads"),
        "weight_bytes": runner.weight_nbytes,
        "cache_bytes": cache.nbytes,
        "tokenizer": tokenizer.kind,
        "chat_template": None if template is None else template.name,
        "notes": list(opened.notes),
    }
