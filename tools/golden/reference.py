"""What transformers computes with a golden model: logits, hidden states, greedy continuations."""

from __future__ import annotations

import numpy as np
import torch
from golden.cases import LONG_PROMPT, SHORT_PROMPT, VOCAB_SIZE
from transformers import PreTrainedModel

GREEDY_TOKENS = 48
LONG_PROMPT_ROWS = 12
FIRST_FREE_TOKEN = 3  # after pad, BOS and EOS

Arrays = dict[str, np.ndarray]


def prompts(seed: int) -> list[np.ndarray]:
    """int64 ids of the long and the short prompt, BOS first."""
    random = np.random.default_rng([seed, 0])
    return [
        np.concatenate([[1], random.integers(FIRST_FREE_TOKEN, VOCAB_SIZE, length - 1)])
        for length in (LONG_PROMPT, SHORT_PROMPT)
    ]


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """float32 [T, vocab_size], computed without a cache."""
    return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids: np.ndarray) -> Arrays:
    """float32 [T, hidden_size] each: `embedding` (into layer 0), `layer_<l>` (out of layer l), `final_norm`.

    Taken by hooks: the last of transformers' own hidden_states is the final norm's output, not the last layer's.
    """
    seen: Arrays = {}

    def keep(name: str, value: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        seen[name] = tensor.detach().reshape(len(ids), -1).numpy().copy()

    layers = model.model.layers
    handles = [
        layers[0].register_forward_pre_hook(lambda _, inputs: keep("embedding", inputs)),
        model.model.norm.register_forward_hook(lambda _m, _i, output: keep("final_norm", output)),
    ]
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_hook(lambda _m, _i, output, index=index: keep(f"layer_{index}", output)))
    model(torch.from_numpy(ids)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def greedy(model: PreTrainedModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Argmax continuation and, at each step, the largest logit minus the second; everything recomputed each step."""
    sequence, margins = ids, []
    for _ in range(GREEDY_TOKENS):
        last = logits_of(model, sequence)[-1]
        second, first = np.partition(last, -2)[-2:]
        margins.append(first - second)
        sequence = np.append(sequence, last.argmax())
    return sequence[len(ids) :], np.array(margins, np.float32)


@torch.no_grad()
def attention_peak(model: PreTrainedModel, ids: np.ndarray) -> float:
    """Mean over layers, heads and the later half of positions of the largest attention weight; 1/T were uniform."""
    attentions = model(torch.from_numpy(ids)[None], use_cache=False, output_attentions=True).attentions
    return float(torch.stack([weights[0, :, len(ids) // 2 :].amax(-1) for weights in attentions]).mean())


def reference_arrays(model: PreTrainedModel, seed: int) -> Arrays:
    """The contents of reference.npz; tests/golden_models.py describes the keys."""
    arrays: Arrays = {}
    for number, ids in enumerate(prompts(seed)):
        rows = np.arange(len(ids))
        if number == 0:
            rows = np.linspace(0, len(ids) - 1, LONG_PROMPT_ROWS).round().astype(np.int64)
        logits = logits_of(model, ids)
        generated, margins = greedy(model, ids)
        arrays[f"input_ids_{number}"] = ids
        arrays[f"pos_{number}"] = rows
        arrays[f"logits_{number}"] = logits[rows]
        arrays[f"top1_{number}"] = logits.argmax(-1)
        arrays[f"greedy_{number}"] = generated
        arrays[f"greedy_margin_{number}"] = margins
        for name, value in hidden_states(model, ids).items():
            arrays[f"{name}_{number}"] = value[rows]
    return arrays
