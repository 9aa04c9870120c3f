"""Greedy answers from the training module, many conversations at once."""

from __future__ import annotations

from pathlib import Path

import torch

from tools.guide.net import Llama, Shape
from tools.guide.vocabulary import Vocabulary

Messages = list[dict[str, str]]


def load_run(folder: Path) -> tuple[Llama, Vocabulary, dict]:
    """The model, the tokenizer and the checkpoint record of a training run."""
    record = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = Llama(Shape(**record["shape"]))
    model.load_state_dict(record["model"])
    return model.eval(), Vocabulary(folder / "tokenizer.model"), record


@torch.no_grad()
def greedy(model: Llama, vocabulary: Vocabulary, conversations: list[Messages], max_tokens: int = 200) -> list[str]:
    """The answer to each conversation, float32, until <|end|> or `max_tokens`. Rows are padded on the left."""
    prompts = [vocabulary.encode(messages, generate=True)[0] for messages in conversations]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    # A padded query looks at itself alone: a row without any True would give NaN.
    mask = (torch.tril(torch.ones(longest, longest, dtype=torch.bool)) & real[:, None, :]) | torch.eye(
        longest, dtype=torch.bool
    )
    caches: list[dict[str, torch.Tensor]] = [{} for _ in model.model.layers]
    hidden = model.hidden(ids, positions, mask[:, None], caches)[:, -1]
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows = torch.ones(len(prompts), dtype=torch.bool)
    place = positions[:, -1:]
    for _ in range(max_tokens):
        chosen = model.logits(hidden).argmax(-1)
        open_rows &= chosen != vocabulary.end
        if not open_rows.any():
            break
        for row in open_rows.nonzero().flatten().tolist():
            answers[row].append(int(chosen[row]))
        place = place + 1
        real = torch.cat([real, torch.ones(len(prompts), 1, dtype=torch.bool)], dim=1)
        hidden = model.hidden(chosen[:, None], place, real[:, None, None, :], caches)[:, -1]
    return [vocabulary.decode(answer) for answer in answers]
