"""What to ask of a conversion for a given device: the most bits that fit and still answer at a reader's pace."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgellm.backends.slots import CacheGeometry
from edgellm.convert.assignment import stored_bits
from edgellm.convert.devices import Device
from edgellm.convert.scheme import Scheme
from edgellm.convert.units import units_of
from edgellm.errors import UsageError
from edgellm.model import ModelConfig, OpenedModel

#: Tried in this order: what is nearest to the original first.
_CHOICES = ((8, 128), (4, 32), (4, 128), (3, 128), (2, 64))
_CONTEXTS = (8192, 4096, 2048, 1024)
_CACHE_DTYPES = ("float16", "int8")
#: Of the memory, for the system and whatever else runs; the process itself without weights and cache.
_SYSTEM_SHARE, _PROCESS_BYTES = 0.25, 300 << 20
#: Of the peak bandwidth that reading weights reaches, and tokens a second that read like speech.
_REACHED, _PACE = 0.7, 10.0


@dataclass(frozen=True)
class Target:
    """What fits a device.

    Attributes:
        device: its name.
        bits, group_size: for the conversion.
        context, cache_dtype: for running what it writes.
        weights_bytes, cache_bytes, usable_bytes: what it takes, and what the device has for it.
        tokens_per_s: predicted for decoding: bytes read a token against 0.7 of the peak bandwidth.
        why: sentences for people.
    """

    device: str
    bits: int
    group_size: int
    context: int
    cache_dtype: str
    weights_bytes: int
    cache_bytes: int
    usable_bytes: int
    tokens_per_s: float
    why: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {**asdict(self), "why": list(self.why)}

    def settings(self) -> dict[str, int]:
        """Those of a recipe."""
        return {"bits": self.bits, "group_size": self.group_size}


def choose(opened: OpenedModel, device: Device) -> Target:
    """The target for a model on a device. Raises `UsageError` where not even 2 bits fit."""
    usable = int(device.memory_gb * 1e9 * (1 - _SYSTEM_SHARE)) - _PROCESS_BYTES
    fitting = [found for bits, group in _CHOICES if (found := _fit(opened, device, usable, bits, group)) is not None]
    if not fitting:
        needed, _ = _weights_bytes(opened, Scheme(bits=2, group_size=64))
        raise UsageError(
            f"does not fit {device.name} even at 2 bits",
            key="target",
            found=f"{needed:,} bytes of weights",
            allowed=f"{usable:,}",
            hint="Choose a smaller model, or prune this one.",
        )
    quick = [target for target in fitting if target.tokens_per_s >= _PACE]
    # Below 4 bits quality falls quickly, so speed alone never asks for it.
    slow = max((target for target in fitting if target.bits >= 4), key=lambda t: t.tokens_per_s, default=fitting[0])
    chosen = next((target for target in quick if target.bits >= 4), slow)
    return _explained(chosen, fitting, device)


def _fit(opened: OpenedModel, device: Device, usable: int, bits: int, group_size: int) -> Target | None:
    weights, read = _weights_bytes(opened, Scheme(bits=bits, group_size=group_size))
    longest = opened.config.max_position_embeddings
    for context in [length for length in _CONTEXTS if length <= longest] or [longest]:
        for dtype in _CACHE_DTYPES:
            cache = _cache_bytes(opened.config, context, dtype)
            if weights + cache <= usable:
                rate = device.bandwidth_gb_s * 1e9 * _REACHED / (read + cache / 2)
                return Target(
                    device.name, bits, group_size, context, dtype, weights, cache, usable, round(rate, 1), ()
                )  # fmt: skip
    return None


def _weights_bytes(opened: OpenedModel, scheme: Scheme) -> tuple[int, int]:
    """(bytes of all weights, bytes of those that every token reads)."""
    config = opened.config
    linears = sum(
        unit.size * stored_bits(scheme, unit.in_features) / 8
        for unit in units_of(opened.weights)
        if unit.layer is not None
    )
    table = 2 * config.vocab_size * config.hidden_size
    return int(linears + table * (1 if opened.weights.lm_head_is_embedding else 2)), int(linears + table)


def _cache_bytes(config: ModelConfig, context: int, dtype: str) -> int:
    heads = config.num_key_value_heads
    return CacheGeometry(context, config.layer_windows, heads, config.head_dim, min(128, context), dtype).slot_nbytes


def _explained(chosen: Target, fitting: list[Target], device: Device) -> Target:
    why = [
        f"{device.name} has {device.memory_gb:g} GB at {device.bandwidth_gb_s:g} GB/s; "
        f"{chosen.usable_bytes / 1e9:.1f} GB are left for weights and cache"
    ]
    better = next(
        (target for target in fitting if (target.bits, -target.group_size) > (chosen.bits, -chosen.group_size)), None
    )
    if better is not None:
        why.append(
            f"{better.bits} bits in groups of {better.group_size} would fit too, at {better.tokens_per_s:g} tokens/s"
        )
    elif chosen.bits < 8:
        why.append("more bits do not fit")
    why.append(
        f"{chosen.bits} bits in groups of {chosen.group_size}: {chosen.weights_bytes / 1e9:.2f} GB of weights, "
        f"{chosen.cache_bytes / 1e9:.2f} GB for {chosen.context} tokens in {chosen.cache_dtype}, "
        f"about {chosen.tokens_per_s:g} tokens/s"
    )
    return Target(**{**asdict(chosen), "why": tuple(why)})
