"""What a conversion is asked to do: one record, from flags or a file, whose digest tells a resumed run from another."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgellm.convert.prune_settings import PruneSettings
from edgellm.convert.scheme import Scheme
from edgellm.errors import UsageError
from edgellm.formats.writer import MAX_SHARD_BYTES
from edgellm.jsonfile import parse_json, read_bytes

METHODS = ("gptq", "awq", "rtn")
#: The method of a recipe that prunes and quantizes nothing; `bits` = 16 asks for it.
NO_METHOD = "none"
UNQUANTIZED_BITS = 16
LM_HEAD_BITS = (4, 8)
MAX_SEQUENCES = 1 << 16
MAX_SEQUENCE_LENGTH = 1 << 16
#: What a module's override may set; "skip" leaves it as it is.
OVERRIDES = ("bits", "group_size", "sym", "skip")
#: Settings that change no byte of what is written, or whose file counts by its tokens, the source by its digest.
_NOT_IN_DIGEST = ("max_ram", "calibration", "prune")


@dataclass(frozen=True)
class Recipe:
    """All settings of a conversion.

    Attributes:
        method: "gptq", "awq" or "rtn" (which needs no calibration); "none" prunes alone.
        scheme: bits, groups and so on of every linear that no override names.
        overrides: settings by module name or expression (matched from the start of the file's full name, the first
            that fits wins): some of `bits`, `group_size`, `sym`, or `skip` = true.
        average_bits: mixed precision that meets this average; None gives every linear the scheme's bits.
        lm_head_bits: 4 or 8 to quantize the output layer too (GPTQ files alone carry that); None leaves it.
        damp_percent: GPTQ's dampening, a share of the mean diagonal.
        true_sequential: a linear is calibrated with what the quantized ones before it in its block give; without,
            with what the unquantized ones give.
        calibration: a text, JSONL or chat JSONL file; None is the built-in text.
        sequences, sequence_length: of calibration tokens; fewer sequences where the text is short.
        seed: which sequences of a longer text are taken.
        prune: what is taken out before quantizing, None for nothing.
        max_ram: bytes the process may hold at its peak, None for what is available.
        shard_bytes: of one file of weights at most.

    Raises:
        UsageError: a value outside its range, or settings that exclude each other.
    """

    method: str = "gptq"
    scheme: Scheme = field(default_factory=Scheme)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    average_bits: float | None = None
    lm_head_bits: int | None = None
    damp_percent: float = 0.01
    true_sequential: bool = True
    calibration: str | None = None
    sequences: int = 128
    sequence_length: int = 512
    seed: int = 0
    prune: PruneSettings | None = None
    max_ram: int | None = None
    shard_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        _choice("method", self.method, (*METHODS, NO_METHOD))
        if not self.quantizes:
            self._check_unquantized()
        if self.lm_head_bits is not None:
            _choice("lm_head_bits", self.lm_head_bits, LM_HEAD_BITS)
        _number("damp_percent", self.damp_percent, 1e-6, 1.0)
        _whole("sequences", self.sequences, 1, MAX_SEQUENCES)
        _whole("sequence_length", self.sequence_length, 8, MAX_SEQUENCE_LENGTH)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _whole("shard_bytes", self.shard_bytes, 1 << 20, 1 << 50)
        if self.max_ram is not None:
            _whole("max_ram", self.max_ram, 1, 1 << 60)
        if self.average_bits is not None:
            _number("average_bits", self.average_bits, 2.0, 8.5)
        if type(self.true_sequential) is not bool:
            raise UsageError("not a flag", key="true_sequential", found=self.true_sequential, allowed="true, false")
        for name, settings in self.overrides.items():
            self._check_override(name, settings)
        if self.method == "awq":
            self._check_awq()

    @property
    def quantizes(self) -> bool:
        """Whether any weight is quantized."""
        return self.method != NO_METHOD

    @property
    def packing(self) -> str:
        """Whose tensors the file has, "awq" or "gptq": AWQ's own hold 4 bits, its other ones are written as GPTQ."""
        return "awq" if self.method == "awq" and self._all_bits() == {4} else "gptq"

    def _all_bits(self) -> set[int]:
        return {self.scheme.bits} | {int(given["bits"]) for given in self.overrides.values() if "bits" in given}

    def _check_unquantized(self) -> None:
        if self.prune is None:
            hint = "Ask for something to prune, or for fewer bits."
            raise UsageError("nothing would be pruned or quantized", key="bits", found=UNQUANTIZED_BITS, hint=hint)
        for key in ("average_bits", "lm_head_bits", "overrides"):
            if getattr(self, key):
                raise UsageError("nothing is quantized at 16 bits", key=key, found=getattr(self, key))

    def _check_awq(self) -> None:
        if self.scheme.desc_act or self.average_bits is not None or self.lm_head_bits is not None:
            allowed = "no act-order, no average, no lm_head"
            raise UsageError("AWQ cannot do that", key="method", found="awq", allowed=allowed)

    def _check_override(self, name: str, settings: Any) -> None:
        key = f"overrides.{name}"
        if not isinstance(settings, Mapping) or not settings or set(settings) - set(OVERRIDES):
            raise UsageError("not settings of a module", key=key, found=settings, allowed=", ".join(OVERRIDES))
        if type(settings.get("skip", False)) is not bool:
            raise UsageError("not a flag", key=f"{key}.skip", found=settings["skip"], allowed="true, false")
        self.overridden(settings)

    def overridden(self, settings: Mapping[str, Any]) -> Scheme | None:
        """The scheme under an override's settings; None where the module is skipped."""
        if settings.get("skip"):
            return None
        return replace(self.scheme, **{key: value for key, value in settings.items() if key != "skip"})

    def digest(self) -> str:
        """What runs that write the same bytes from the same source and calibration tokens have in common."""
        values = {key: value for key, value in asdict(self).items() if key not in _NOT_IN_DIGEST}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_SCHEME_KEYS = tuple(item.name for item in fields(Scheme))
_OWN_KEYS = tuple(item.name for item in fields(Recipe) if item.name != "scheme")
KEYS = (*_SCHEME_KEYS, *_OWN_KEYS)
#: Settings that ask for a quantization; where none of them is given, pruning is all that is done.
_QUANTIZING = {*_SCHEME_KEYS, "method", "overrides", "average_bits", "lm_head_bits", "damp_percent"}


def make_recipe(settings: Mapping[str, Any], where: str | None = None) -> Recipe:
    """A recipe from flat settings, `KEYS`; those of a scheme stand beside the others, None counts as not given.

    `prune` is a table of `PruneSettings` or true; with it, and without any setting of a quantization, nothing is
    quantized, which `bits` = 16 says too.

    Raises:
        UsageError: a key that does not exist, or see `Recipe` and `Scheme`; `where` names the file.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise UsageError("no such setting", file=where, key=unknown[0], allowed=", ".join(KEYS))
    if given.get("prune", False) is not False:
        given["prune"] = PruneSettings.of(given["prune"], where)
        if not any(given.get(key) for key in _QUANTIZING):
            given["bits"] = UNQUANTIZED_BITS
    else:
        given.pop("prune", None)
    if given.get("bits") == UNQUANTIZED_BITS:
        del given["bits"]
        given["method"] = NO_METHOD
    if given.get("method") == "awq":
        given.setdefault("sym", False)  # AWQ's files have zero points, and its quality rests on them
    scheme = Scheme(**{key: value for key, value in given.items() if key in _SCHEME_KEYS})
    return Recipe(scheme=scheme, **{key: value for key, value in given.items() if key in _OWN_KEYS})


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file of TOML, or JSON where its name ends in .json.

    Raises:
        InputError: the file cannot be read.
        ModelError: it is damaged JSON.
        UsageError: it is damaged TOML, or TOML cannot be read by this Python.
    """
    path = Path(path)
    data = read_bytes(path, 1 << 20)
    if path.suffix == ".json":
        return parse_json(data, str(path))
    toml = _toml_parser(path)
    try:
        return toml.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise UsageError(f"not TOML ({error})", file=path) from None


def _toml_parser(path: Path) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        import tomli
    except ImportError:
        hint = "Run `pip install tomli`, or write the recipe as JSON in a file that ends in .json."
        raise UsageError("Python 3.10 cannot read TOML by itself", file=path, hint=hint) from None
    return tomli


def _choice(key: str, found: Any, allowed: tuple[Any, ...]) -> None:
    if found not in allowed or isinstance(found, bool):
        raise UsageError("not supported", key=key, found=found, allowed=", ".join(map(str, allowed)))


def _whole(key: str, found: Any, low: int, high: int) -> None:
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise UsageError("out of range", key=key, found=found, allowed=f"a whole number from {low:,} to {high:,}")


def _number(key: str, found: Any, low: float, high: float) -> None:
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
        raise UsageError("out of range", key=key, found=found, allowed=f"{low:g} to {high:g}")
