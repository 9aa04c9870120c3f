"""Held-out accuracy of the guide, greedy: overall, by group, and after other turns of a conversation.

    python -m tools.guide.evaluate                     # models/guide on edgellm's reference backend
    python -m tools.guide.evaluate --backend cpu       # as people get it
    python -m tools.guide.evaluate --torch RUN         # a training run, with the training module

An answer is right when it has every required fact and names no command that belongs elsewhere (cases.py).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tools.guide.cases import Case, in_conversation_cases, single_turn_cases

_MAX_TOKENS = 200
_HELP = ("basics", "chatting", "convert", "errors", "formats", "inspect", "machine", "sampling")

Answerer = Callable[[list[Case]], list[str]]


def torch_answerer(run: Path) -> Answerer:
    """Answers of a training run, in batches of like length."""
    import torch

    from tools.guide.decode import greedy, load_run

    torch.set_num_threads(1)
    model, vocabulary, _ = load_run(run)

    def answer(cases: list[Case]) -> list[str]:
        order = sorted(range(len(cases)), key=lambda i: len(vocabulary.encode(cases[i].messages())[0]))
        answers = [""] * len(cases)
        for start in range(0, len(order), 48):
            some = order[start : start + 48]
            found = greedy(model, vocabulary, [cases[i].messages() for i in some], _MAX_TOKENS)
            for i, text in zip(some, found, strict=True):
                answers[i] = text
        return answers

    return answer


def edgellm_answerer(model: str, backend: str) -> Answerer:
    """Answers of a published folder through edgellm itself, one conversation at a time."""
    import edgellm

    llm = edgellm.load(model, backend=backend)

    def one(case: Case) -> str:
        with llm.chat(messages=case.before) as chat:
            return chat.send(case.question, max_tokens=_MAX_TOKENS, temperature=0).text

    def answer(cases: list[Case]) -> list[str]:
        return [one(case) for case in cases]

    return answer


def tally(cases: list[Case], answers: list[str]) -> dict[str, tuple[int, int]]:
    """(right, asked) by group, and for "help" and "all"."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for case, text in zip(cases, answers, strict=True):
        for group in {case.group, "all", *(["help"] if case.group in _HELP else [])}:
            counts[group][0] += case.right(text)
            counts[group][1] += 1
    return {group: (right, asked) for group, (right, asked) in sorted(counts.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/guide")
    parser.add_argument("--backend", default="reference", help="of edgellm (reference)")
    parser.add_argument("--torch", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers")
    parser.add_argument("--limit", type=int, help="only every n-th case, to be quick", metavar="N", default=1)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    args = parser.parse_args()
    answerer = torch_answerer(args.torch) if args.torch else edgellm_answerer(args.model, args.backend)
    report = {}
    for title, cases in (("alone", single_turn_cases()), ("in conversation", in_conversation_cases())):
        cases = cases[:: args.limit]
        answers = answerer(cases)
        report[title] = tally(cases, answers)
        print(f"{title}:")
        for group, (right, asked) in report[title].items():
            print(f"  {group:10} {right:4} of {asked:4}  {right / asked:6.1%}")
        for case, text in zip(cases, answers, strict=True):
            if args.wrong and not case.right(text):
                print(f"  wrong [{case.name}] {case.question}\n        {text}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
