"""Reads typed values out of a JSON object; every refusal names file, key, what was found and what may stand there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgellm.errors import ModelError, printable

_REQUIRED = object()


class ObjectReader:
    """A JSON object of a known file.

    JSON `null` counts as absent, as in Hugging Face configs. `True` is not an integer here, unlike in Python.

    Args:
        values: the parsed object.
        file: named in errors.
        path: dotted path of this object within the file, "" for the top.
    """

    def __init__(self, values: Mapping[str, Any], file: str, path: str = "") -> None:
        self.values = values
        self.file = file
        self._path = path

    def error(self, key: str, what: str, allowed: str | None = None, hint: str | None = None) -> ModelError:
        """A `ModelError` about `key` that quotes the value found there."""
        found = printable(repr(self.values.get(key)), 60)
        return ModelError(what, file=self.file, key=self._path + key, found=found, allowed=allowed, hint=hint)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def _get(self, key: str, default: Any, allowed: str) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(key, "required value is missing", allowed)
        return default

    def integer(self, key: str, low: int, high: int, default: Any = _REQUIRED) -> Any:
        """An integer in low..high; `default` is returned unchecked."""
        allowed = f"an integer from {low:,} to {high:,}"
        value = self._get(key, default, allowed)
        if value is not default and (type(value) is not int or not low <= value <= high):
            raise self.error(key, "value out of range", allowed)
        return value

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED) -> Any:
        """A number in low..high as float; `default` is returned unchecked."""
        allowed = f"a number from {low:g} to {high:g}"
        value = self._get(key, default, allowed)
        if value is default:
            return value
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.error(key, "value out of range", allowed)
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """A boolean."""
        value = self._get(key, default, "true or false")
        if value is not default and type(value) is not bool:
            raise self.error(key, "not a boolean", "true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED, choices: tuple[str, ...] | None = None) -> Any:
        """A string, one of `choices` where given."""
        allowed = " | ".join(choices) if choices else "a string"
        value = self._get(key, default, allowed)
        if value is not default and (type(value) is not str or (choices is not None and value not in choices)):
            raise self.error(key, "not supported" if choices else "not a string", allowed)
        return value

    def child(self, key: str) -> ObjectReader | None:
        """The object under `key`, None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, "not an object", "an object or null")
        return ObjectReader(value, self.file, f"{self._path}{key}.")

    def integers(self, key: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """One integer or a list of at most `most`, each in low..high; () where there is none."""
        value = self.values.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if len(items) > most or any(type(item) is not int or not low <= item <= high for item in items):
            raise self.error(key, "value out of range", f"an integer from {low:,} to {high:,}, or up to {most} of them")
        return tuple(items)

    def texts(self, key: str, length: int, choices: tuple[str, ...]) -> tuple[str, ...] | None:
        """A list of exactly `length` strings, each one of `choices`; None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(item not in choices for item in value):
            raise self.error(key, "not such a list", f"{length} of: {' | '.join(choices)}")
        return tuple(value)
