"""Put the built-in calibration text together, from nothing but this project's own words.

    python -m tools.make_calibration [OUT]

Prose, dialogue and other languages stand in tools/calibration; stories come from the guide's grammar, help from its
answers, code from this package, tables, sums and data formats are drawn. Pieces are shuffled, so that any sequence of
some hundred tokens sees several kinds. The same seed writes the same file.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from edgellm.convert.calibration import BUILT_IN
from tools.guide.stories import story

REPOSITORY = Path(__file__).parent.parent
_TEXTS = Path(__file__).parent / "calibration"
_CODE = ("model/rope.py", "backends/slots.py", "formats/gptq.py", "text/stream.py", "convert/stages.py")
_CODE_CHARS = 6500
_STORIES, _ANSWERS, _TABLES = 36, 90, 10
_WORDS = (
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "ledge",
    "marsh", "north", "orbit", "pearl", "quarry", "ridge",
)  # fmt: skip


def main(out: str | None = None) -> None:
    """Write the text and say how long it is."""
    rng = random.Random(20)
    pieces = [*_texts(), *_stories(rng), *_answers(rng), *_code(), *_tables(rng), *_sums(rng), *_data(rng)]
    rng.shuffle(pieces)
    path = Path(out) if out else BUILT_IN
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(piece.strip() for piece in pieces) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes, {len(pieces)} pieces")


def _texts() -> Iterator[str]:
    for name in ("prose.txt", "dialogue.txt", "languages.txt"):
        text = (_TEXTS / name).read_text(encoding="utf-8")
        yield from re.split(r"\n\n(?=User:)" if name == "dialogue.txt" else r"\n\n", text)


def _stories(rng: random.Random) -> Iterator[str]:
    for _ in range(_STORIES):
        yield story(rng)


def _answers(rng: random.Random) -> Iterator[str]:
    lines = []
    for path in sorted((REPOSITORY / "tools" / "guide" / "intents").glob("*.txt")):
        lines += [line[3:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("a: ")]
    chosen = rng.sample(lines, _ANSWERS)
    for first in range(0, _ANSWERS, 3):
        yield "\n".join(f"- {line}" for line in chosen[first : first + 3])


def _code() -> Iterator[str]:
    for name in _CODE:
        text = (REPOSITORY / "edgellm" / name).read_text(encoding="utf-8")
        functions = re.split(r"\n\n\n", text)
        held = ""
        for function in functions:
            if len(held) + len(function) > _CODE_CHARS:
                break
            held += function + "\n\n\n"
        yield f"```python\n{held.strip()}\n```"


def _tables(rng: random.Random) -> Iterator[str]:
    for number in range(_TABLES):
        rows = [
            (
                rng.choice(_WORDS),
                rng.randint(1, 999),
                f"{rng.uniform(0, 100):.2f}",
                f"{rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.20{rng.randint(10, 29)}",
            )
            for _ in range(rng.randint(4, 7))
        ]
        mark = ",;\t|"[number % 4]
        yield "\n".join(mark.join(map(str, row)) for row in [("place", "count", "share", "date"), *rows])


def _sums(rng: random.Random) -> Iterator[str]:
    for _ in range(8):
        lines = []
        for _ in range(rng.randint(4, 8)):
            a, b = rng.randint(2, 999), rng.randint(2, 99)
            sign, value = rng.choice([("+", a + b), ("-", a - b), ("*", a * b)])
            lines.append(f"{a} {sign} {b} = {value}")
        yield "\n".join(lines)


def _data(rng: random.Random) -> Iterator[str]:
    for number in range(6):
        item = {
            "id": rng.randint(1000, 99999),
            "name": f"{rng.choice(_WORDS)}-{rng.choice(_WORDS)}",
            "tags": rng.sample(_WORDS, 3),
            "size": {"width": rng.randint(1, 400), "height": rng.randint(1, 400)},
            "active": bool(number % 2),
            "ratio": round(rng.random(), 4),
        }
        if number % 3 == 0:
            yield json.dumps(item, indent=2)
        elif number % 3 == 1:
            yield "\n".join(f"{key}: {value}" for key, value in item.items())
        else:
            rows = "".join(f'\n  <li class="{tag}">{tag}</li>' for tag in item["tags"])
            yield f'<div id="{item["id"]}">\n <h2>{item["name"]}</h2>\n <ul>{rows}\n </ul>\n</div>'


if __name__ == "__main__":
    main(*sys.argv[1:2])
