"""Train the guide model.

    python -m tools.guide.train --out RUN --steps 5600 --seed 1

RUN receives tokenizer.model, checkpoint.pt (every 200 steps; a second call goes on from it) and log.jsonl.
`python -m tools.guide.export RUN FLOAT16` then writes a folder in float16, which quantize.toml makes the published one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F

from tools.guide.batches import Batch, heldout_batches, training_batch
from tools.guide.conversations import Generator
from tools.guide.net import Llama, Shape
from tools.guide.vocabulary import Vocabulary, train_vocabulary

_CHECKPOINT_EVERY = 200
_CONVERSATIONS_FOR_VOCABULARY = 8000


def loss_of(model: Llama, batch: Batch) -> torch.Tensor:
    """Weighted mean of the cross-entropy, in nats, over the tokens that the assistant writes."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch.ids, batch.positions, batch.mask)
        learned = batch.targets >= 0
        logits = model.logits(hidden[learned])
    losses = F.cross_entropy(logits.float(), batch.targets[learned], reduction="none")
    weights = batch.weights[learned]
    return (losses * weights).sum() / weights.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warmup over 100 steps, then a cosine down to a fiftieth of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))))


def make_vocabulary(path: Path, seed: int, vocab_size: int) -> Vocabulary:
    """Train tokenizer.model on generated conversations unless it is there."""
    if not path.exists():
        drawn = islice(Generator(seed), _CONVERSATIONS_FOR_VOCABULARY)
        texts = (message["content"] for conversation in drawn for message in conversation.messages())
        path.write_bytes(train_vocabulary(texts, vocab_size))
    return Vocabulary(path)


@torch.no_grad()
def heldout_loss(model: Llama, batches: list[Batch]) -> float:
    """Mean over all held-out answers, weighted as in training."""
    counts = [batch.weights.sum().item() for batch in batches]
    losses = [loss_of(model, batch).item() for batch in batches]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def save(path: Path, model: Llama, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Replace the checkpoint in one move, so that an interruption never leaves half a file."""
    record = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save({**record, "shape": model.shape.config()}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def train(out: Path, steps: int, seed: int, peak: float, tokens: int) -> None:
    """Run or go on with a training run in folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = make_vocabulary(out / "tokenizer.model", seed, Shape.vocab_size)
    torch.manual_seed(seed)
    model = Llama(Shape())
    decayed = [weight for weight in model.parameters() if weight.dim() == 2]
    scales = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    checkpoint, start, before = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        record = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(record["model"])
        optimizer.load_state_dict(record["optimizer"])
        start, before = record["step"], record["seconds"]
    unseen, began, running, seen = heldout_batches(vocabulary), time.monotonic(), 0.0, 0
    for step in range(start, steps):
        batch = training_batch(vocabulary, seed, step, tokens)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running, seen = running + loss.item(), seen + batch.ids.numel()
        done = step + 1
        if done % 50 == 0 or done == steps:
            seconds = before + time.monotonic() - began
            line = {"step": done, "loss": running / ((done - start - 1) % 50 + 1), "seconds": round(seconds, 1)}
            line["tokens_per_second"] = round(seen / (time.monotonic() - began))
            running = 0.0
            if done % _CHECKPOINT_EVERY == 0 or done == steps:
                line["heldout_loss"] = heldout_loss(model, unseen)
                save(checkpoint, model, optimizer, done, seconds)
            with open(out / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="ids in a batch")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.out, args.steps, args.seed, args.learning_rate, args.tokens)


if __name__ == "__main__":
    main()
