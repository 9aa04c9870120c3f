"""How people really type: lower case, no question mark, a greeting in front, a slip of a finger."""

from __future__ import annotations

import random

from tools.guide.grammar import pseudo_word

_PROPER = {
    "i": "I",
    "edgellm": "edgellm",
    "jetson": "Jetson",
    "cuda": "CUDA",
    "gpu": "GPU",
    "cpu": "CPU",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "rtn": "RTN",
    "gguf": "GGUF",
    "json": "JSON",
    "python": "Python",
    "qwen": "Qwen",
    "llama": "Llama",
    "mistral": "Mistral",
    "tinyllama": "TinyLlama",
    "smollm2": "SmolLM2",
    "nan": "NaN",
    "ram": "RAM",
    "gb": "GB",
    "mit": "MIT",
    "kv": "KV",
    "nvidia": "NVIDIA",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
_ASKING = [
    "how", "what", "which", "who", "where", "when", "why", "is", "are", "can", "could", "does", "do", "did", "will",
    "would", "may", "should", "am", "was", "have",
]  # fmt: skip
_FRONT = ["hi, ", "hello, ", "hey, ", "ok, ", "so, ", "please, ", "sorry, ", "one more question: ",
          "another question: ", "quick question: ", "i was wondering, ", "tell me, ", "excuse me, ",
          "i am a beginner, ", "and ", "well, ",
          "now ", "thanks, and ", "then ", "by the way, ", "dear guide, "]  # fmt: skip
_BACK = [" please", " thanks", ", please", " again", " now", " thank you", " right away", " exactly",
         " in short", " if i may ask", " for me", ", do you know", ", any idea", " then", " really"]  # fmt: skip
_DROPPED = {
    "the", "a", "an", "my", "to", "do", "i", "is", "it", "of", "me", "in", "for", "does", "are", "be", "this", "that",
    "can", "you",
}  # fmt: skip
# Words that mean about the same; none of them is a command, or tells one intent from another.
_SYNONYMS = {
    "use": ["work with", "utilize", "employ"], "make": ["create", "produce", "build"], "find": ["locate", "discover"],
    "change": ["adjust", "alter", "modify"], "start": ["begin", "launch"], "see": ["view", "look at", "find"],
    "set": ["specify", "choose", "define"], "folder": ["directory"], "directory": ["folder"], "big": ["large", "huge"],
    "large": ["big", "huge"], "faster": ["quicker", "speedier"], "slow": ["sluggish", "not fast"],
    "need": ["require", "want", "have to have"], "needs": ["requires", "wants"], "get": ["obtain", "have", "receive"],
    "remove": ["delete", "drop"], "answer": ["reply", "response", "output"], "answers": ["replies", "responses"],
    "conversation": ["chat", "dialogue", "talk"], "computer": ["pc", "machine", "notebook"],
    "laptop": ["notebook", "computer"], "machine": ["computer", "pc", "system"], "missing": ["absent", "not there"],
    "difference": ["distinction"], "differences": ["distinctions"], "should": ["shall", "ought to", "must"],
    "type": ["enter", "write"], "write": ["produce", "create"], "works": ["functions", "runs"], "mean": ["signify"],
    "message": ["text", "input"], "show": ["display", "print", "give"], "list": ["name", "enumerate"],
    "stop": ["halt", "end", "interrupt"], "choose": ["pick", "select", "decide on"], "pick": ["choose", "select"],
    "many": ["lots of", "a lot of"], "explain": ["clarify", "describe", "tell me"], "tell": ["say to", "let"],
    "damaged": ["broken", "corrupted", "bad"], "whole": ["complete", "intact"], "better": ["preferable", "superior"],
    "happens": ["goes on", "occurs"], "long": ["lengthy"], "supported": ["accepted", "handled", "understood"],
    "support": ["handle", "accept", "understand"], "several": ["some", "multiple", "more than one"],
    "file": ["document", "thing"], "good": ["fine", "decent", "suitable"], "fix": ["solve", "repair", "resolve"],
    "error": ["problem", "message", "failure"], "best": ["right", "ideal"], "want": ["would like", "wish"],
    "allowed": ["permitted"], "possible": ["feasible"], "keep": ["hold", "retain"], "wrong": ["not right", "off"],
    "where": ["in which place"], "why": ["for what reason", "how come"], "much": ["a lot of"], "after": ["following"],
    "new": ["fresh", "another"], "old": ["former", "previous", "earlier"], "last": ["previous", "latest", "final"],
    "save": ["store", "keep"], "delete": ["erase", "remove", "wipe"], "copy": ["duplicate", "transfer"],
    "end": ["finish", "quit"], "leave": ["exit", "go out of"], "talk": ["speak", "chat"], "ask": ["question"],
    "small": ["little", "tiny"], "short": ["brief"], "beginning": ["start"], "question": ["query"],
    "questions": ["queries"], "problem": ["issue", "trouble"], "know": ["understand", "see"],
    "command": ["instruction"], "commands": ["instructions"],
    "speed": ["pace"], "download": ["fetch", "get"], "convert": ["transform", "turn"],
    "converted": ["transformed"], "quality": ["accuracy"], "lose": ["give up"], "fit": ["have room"],
    "enough": ["sufficient"], "space": ["room"], "correct": ["right"], "loading": ["opening"], "load": ["open", "read"],
    "called": ["named"], "various": ["different"], "only": ["just", "merely"], "often": ["frequently"],
    "people": ["persons", "somebody"], "please": ["kindly"], "prevent": ["avoid"], "allow": ["let", "permit"],
    "work": ["function", "go"], "give": ["hand", "offer"], "put": ["place"], "words": ["terms"], "text": ["words"],
}  # fmt: skip


def _typo(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def _with_typo(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    able = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if able:
        at = rng.choice(able)
        words[at] = _typo(words[at], rng)
    return " ".join(words)


def _reworded(text: str, rng: random.Random) -> str:
    words = [
        rng.choice(_SYNONYMS[word]) if word in _SYNONYMS and rng.random() < 0.3 else word for word in text.split(" ")
    ]
    if len(words) >= 5 and rng.random() < 0.15:
        # A word nobody knows: the others have to be enough.
        words[rng.randrange(len(words))] = pseudo_word(rng)
    if rng.random() < 0.15:
        kept = [word for word in words if word not in _DROPPED or rng.random() < 0.5]
        words = kept if len(kept) >= 2 else words
    return " ".join(words)


def as_typed(text: str, rng: random.Random, plain: bool = False) -> str:
    """`text`, a lower-case question, as somebody might type it; `plain` leaves out additions and slips."""
    if not plain:
        if rng.random() < 0.5:
            text = _reworded(text, rng)
        if rng.random() < 0.08:
            text = rng.choice(_FRONT) + text
        elif rng.random() < 0.07:
            text = text + rng.choice(_BACK)
        if rng.random() < 0.12:
            text = _with_typo(text, rng)
    style = rng.random()
    if style < 0.35:
        return text
    first = text.split(" ", 1)[0].strip(",")
    mark = "?" if first in _ASKING else rng.choice([".", "", "", "!", "?"])
    if style < 0.45:
        return text + mark
    if style < 0.47:
        return text.upper() + mark
    shown = " ".join(_PROPER.get(word.strip(",.?"), word) if word in _PROPER else word for word in text.split(" "))
    return shown[:1].upper() + shown[1:] + (mark if style < 0.9 else "")
