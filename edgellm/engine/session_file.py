"""A conversation in a safetensors file: messages, and what its slot held, so that it goes on without a prefill.

`__metadata__["edgellm_session"]` is JSON:

    {"version": 1, "identity": of the model, "cache": of the cache, "evict": ..., "system": text or null,
     "messages": [{"role", "content"}], "dropped": [...], "slot": null or {"sinks", "evicted", "end", "forgotten",
     "tokens"}}

The tensors are those of `Cache.export_slot`. A session file is as little trusted as a model's: everything is checked
before it is used, and a slot of another cache is left aside.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.engine.engine import Held
from edgellm.engine.eviction import EVICT_CHAT
from edgellm.engine.transcript import Message, check_messages
from edgellm.errors import InputError, ModelError, OutputError, UsageError
from edgellm.jsonfile import parse_json

KEY = "edgellm_session"
VERSION = 1
_STATE = ("sinks", "evicted", "end", "forgotten")  # of a SlotState; its slot number is not kept
MAX_SESSION_JSON_BYTES = 64 << 20
_TENSOR = re.compile(r"layers\.\d{1,4}\.[a-z_]{1,32}")
_MAX_END = 2**53


@dataclass(frozen=True)
class Session:
    """What a session file holds; `held` is None where there was no slot, or one of another cache."""

    identity: str
    evict: str
    system: str | None
    turns: list[Message]
    dropped: list[Message]
    held: Held | None


def write_session(path: str | os.PathLike[str], session: Session, cache: Mapping[str, Any]) -> None:
    """Write `session` aside, then rename it to `path`. Raises `OutputError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    held = session.held
    slot = None
    if held is not None:
        state = held.state
        slot = {key: getattr(state, key) for key in _STATE} | {"tokens": held.tokens}
    table = {
        "version": VERSION,
        "identity": session.identity,
        "cache": dict(cache),
        "evict": session.evict,
        "system": session.system,
        "messages": session.turns,
        "dropped": session.dropped,
        "slot": slot,
    }
    # A lone surrogate from a terminal cannot be stored as UTF-8.
    text = json.dumps(table, ensure_ascii=False).encode("utf-8", "replace").decode()
    tensors = {} if held is None else {name: np.ascontiguousarray(array) for name, array in held.tensors.items()}
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, aside, metadata={KEY: text})
        os.replace(aside, target)
    except (OSError, SafetensorError, ValueError) as error:
        raise OutputError(f"the conversation cannot be written ({error})", file=target) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            aside.unlink()


def read_session(
    path: str | os.PathLike[str], identity: str, cache: Mapping[str, Any], geometry: CacheGeometry, vocab_size: int
) -> Session:
    """The session in a file.

    Args:
        path: the file.
        identity: of the loaded model; another one is refused.
        cache: `Engine.cache_identity`; with another one `held` is None.
        geometry: of the loaded cache.
        vocab_size: ids from here on are refused.

    Raises:
        InputError: no such file.
        ModelError: damaged, hostile, or of another model.
    """
    from safetensors import SafetensorError, safe_open

    _check_file(path, geometry)
    try:
        with safe_open(path, "numpy", backend="pread") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ModelError("not a saved conversation", file=path, key="__metadata__", allowed=KEY)
            fields = _Fields(parse_json(metadata[KEY].encode("utf-8", "replace"), path), path)
            session = _read_fields(fields, identity)
            if fields.value("cache", dict) != json.loads(json.dumps(dict(cache))):
                return session
            slot = fields.table.get("slot")
            if slot is None:
                return session
            state, tokens = _read_slot(fields, slot, geometry, vocab_size)
            names = list(file.keys())
            bad = next((name for name in names if not _TENSOR.fullmatch(name)), None)
            if bad is not None:
                raise ModelError("not a tensor of a cache", file=path, key=bad)
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"not a safetensors file ({error})", file=path) from None
    return Session(session.identity, session.evict, session.system, session.turns, session.dropped,
                   Held(state, tokens, tensors))  # fmt: skip


def _check_file(path: str | os.PathLike[str], geometry: CacheGeometry) -> None:
    """A regular file no larger than a slot and its messages can be. Raises `InputError`, `ModelError`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=path) from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError("not a regular file", file=path)
    limit = geometry.slot_nbytes + 2 * MAX_SESSION_JSON_BYTES
    if status.st_size > limit:
        raise ModelError("file too large", file=path, found=f"{status.st_size:,} bytes", allowed=f"{limit:,}")


class _Fields:
    """Checked access to the JSON object of a session."""

    def __init__(self, table: dict[str, Any], path: str | os.PathLike[str]) -> None:
        self.table = table
        self.path = path

    def refuse(self, key: str, found: object, allowed: str) -> ModelError:
        return ModelError("not usable", file=self.path, key=f"{KEY}.{key}", found=repr(found), allowed=allowed)

    def value(self, key: str, kind: type) -> Any:
        found = self.table.get(key)
        if type(found) is not kind:
            raise self.refuse(key, found, kind.__name__)
        return found

    def messages(self, key: str) -> list[Message]:
        try:
            system, turns = check_messages(self.value(key, list))
        except UsageError as error:
            raise ModelError(error.what, file=self.path, key=f"{KEY}.{key}: {error.key}", found=error.found) from None
        if system is not None:
            raise self.refuse(key, "system", "user, assistant")
        return turns


def _read_fields(fields: _Fields, identity: str) -> Session:
    """All but the slot."""
    if fields.table.get("version") != VERSION:
        raise fields.refuse("version", fields.table.get("version"), str(VERSION))
    if fields.value("identity", str) != identity:
        raise ModelError(
            "this conversation was saved with another model",
            file=fields.path,
            key=f"{KEY}.identity",
            hint="Load the model it was saved with.",
        )
    evict = fields.value("evict", str)
    if evict not in EVICT_CHAT:
        raise fields.refuse("evict", evict, ", ".join(EVICT_CHAT))
    system = None if fields.table.get("system") is None else fields.value("system", str)
    return Session(identity, evict, system, fields.messages("messages"), fields.messages("dropped"), None)


def _read_slot(fields: _Fields, slot: Any, geometry: CacheGeometry, vocab_size: int) -> tuple[SlotState, list[int]]:
    """The slot's state and tokens, which must agree with each other and with the cache."""
    if not isinstance(slot, dict):
        raise fields.refuse("slot", slot, "an object")
    for key in _STATE:
        if type(slot.get(key)) is not int or not 0 <= slot[key] <= _MAX_END:
            raise fields.refuse(f"slot.{key}", slot.get(key), f"0 to {_MAX_END}")
    tokens = slot.get("tokens")
    if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < vocab_size for t in tokens):
        raise fields.refuse("slot.tokens", tokens, f"a list of 0 to {vocab_size - 1}")
    state = SlotState(0, **{key: slot[key] for key in _STATE})
    if state.length != len(tokens):
        raise fields.refuse("slot.end", slot["end"], f"{len(tokens)} more than slot.evicted")
    if not geometry.unbounded and (state.length > geometry.context or state.sinks >= geometry.context):
        raise fields.refuse("slot", f"{state.length} tokens", f"up to {geometry.context}")
    if state.evicted and state.sinks > state.length:
        raise fields.refuse("slot.sinks", state.sinks, f"up to {state.length}")
    return state, tokens
