"""Figures as people read them."""

from __future__ import annotations

import sys


def size(nbytes: float) -> str:
    """Bytes in decimal units: 2.1 GB."""
    for unit in ("B", "kB", "MB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB" if abs(nbytes) < 1000 else f"{nbytes / 1000:.3g} TB"


def count(number: float) -> str:
    """A number of parameters: 1.24 B."""
    for factor, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.0f}"


def rate(tokens: int, seconds: float) -> str:
    """Tokens a second: 18.2 t/s; a dash where nothing was measured."""
    if tokens <= 0 or seconds <= 0:
        return "- t/s"
    value = tokens / seconds
    return f"{value:.0f} t/s" if value >= 100 else f"{value:.1f} t/s"


def peak_bytes() -> int | None:
    """The most memory this process ever held, None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def statistics(result: object, *, stop_strings: bool = False) -> str:
    """The line after an answer: tokens and rates of both phases, time to the first token, memory, why it ended."""
    usage, timings = result.usage, result.timings
    fresh = usage.prompt_tokens - usage.cached_tokens
    began = bool(result.tokens) or result.finish_reason != "cancelled"  # else nobody says how far the prompt got
    prompt = f"prompt {usage.prompt_tokens} tok {rate(fresh, timings.prefill_s) if began else '(not to its end)'}"
    if usage.cached_tokens:
        prompt += f" ({usage.cached_tokens} cached)"
    reason = result.finish_reason
    if reason == "stop":
        reason = "eos or stop text" if stop_strings else "eos"
    parts = [
        prompt,
        f"gen {usage.completion_tokens} tok {rate(usage.completion_tokens - 1, timings.decode_s)}",
        *([f"ttft {timings.ttft_s:.2f} s"] if began else []),
    ]
    peak = peak_bytes()
    if peak:
        parts.append(f"peak {size(peak)}")
    return " · ".join([*parts, f"stop {reason}"])
