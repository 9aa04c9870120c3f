"""How a checkpoint says it is quantized.

The statement stands in config.json (`quantization_config`), in quantize_config.json or in quant_config.json, in the
words of the tool that wrote it; here it becomes one `QuantizationConfig`. What it says is never believed over the
tensors: `read_linear` proves it against their shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from edgellm.errors import ModelError
from edgellm.formats.limits import MAX_GROUP_SIZE
from edgellm.formats.patterns import ModuleTable
from edgellm.sidefiles import SideFiles, read_side_json

SUPPORTED = "gptq, awq, compressed-tensors, auto-round"
_BITS = {"gptq": (2, 3, 4, 8), "awq": (4,), "compressed-tensors": (2, 3, 4, 8)}
_FORMATS = {
    "gptq": ("gptq", "gptq_v2"),
    "awq": ("gemm", "gemv"),
    "compressed-tensors": ("pack-quantized", "int-quantized", "naive-quantized"),
}


@dataclass(frozen=True)
class LinearScheme:
    """How one linear layer is stored.

    Attributes:
        layout: "gptq", "awq" or "compressed-tensors".
        bits: of a code.
        group_size: inputs that share a scale; -1 means the whole row.
        sym: symmetric as the file says, None where it does not.
        checkpoint_format: variant of the layout: gptq, gptq_v2, gemm, gemv, pack-quantized ...
        word_carry: GPTQ v1 zero points were subtracted word-wise (`formats/gptq.py`).
    """

    layout: str
    bits: int
    group_size: int
    sym: bool | None
    checkpoint_format: str
    word_carry: bool = False


@dataclass(frozen=True)
class QuantizationConfig:
    """What a checkpoint says about its quantization.

    Attributes:
        quant_method: the layout: "gptq", "awq" or "compressed-tensors".
        producer: the method in the file's own words, "auto-round" for instance.
        file: where it was read.
        default: for modules without settings of their own.
        desc_act: as the file says; whether inputs are permuted is told by `g_idx` alone.
        format_given: the file names its checkpoint format; where not, GPTQ means v1.
        lm_head: the output layer is quantized too, as the file says.
        ignore: modules that the file lists as not quantized, for information.
        overrides: `LinearScheme` by module name or expression.
        covers_all: modules that match no override have the default; else they are not quantized.
    """

    quant_method: str
    producer: str
    file: str
    default: LinearScheme
    desc_act: bool = False
    format_given: bool = True
    lm_head: bool = False
    ignore: tuple[str, ...] = ()
    overrides: ModuleTable | None = field(default=None, repr=False)
    covers_all: bool = True

    @property
    def bits(self) -> int:
        return self.default.bits

    @property
    def group_size(self) -> int:
        """Inputs a group; -1 means the whole row."""
        return self.default.group_size

    @property
    def sym(self) -> bool | None:
        return self.default.sym

    @property
    def checkpoint_format(self) -> str:
        return self.default.checkpoint_format

    @property
    def zero_points(self) -> str:
        """How zero points are stored, in words."""
        if self.quant_method != "gptq" or self.checkpoint_format == "gptq_v2":
            return "as they are"
        how = "word by word" if self.default.word_carry else "field by field"
        return f"minus one, {how}" + ("" if self.format_given else " (checkpoint_format not given, v1 taken)")

    def scheme(self, module: str) -> LinearScheme:
        """How module `module` is stored, if it is quantized. Raises `ModelError` where the file does not say."""
        found = self.overrides.find(module) if self.overrides is not None else None
        if found is None and not self.covers_all:
            raise ModelError("quantized, but no group of the config covers it", file=self.file, key=module)
        return self.default if found is None else found

    def facts(self) -> dict[str, Any]:
        """The same, for printing."""
        return {
            "quant_method": self.quant_method,
            "producer": self.producer,
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.sym,
            "desc_act": self.desc_act,
            "checkpoint_format": self.checkpoint_format,
            "zero_points": self.zero_points,
            "lm_head": self.lm_head,
            "overrides": 0 if self.overrides is None else len(self.overrides),
            "ignore": list(self.ignore),
            "file": self.file,
        }


def read_quantization(side_files: SideFiles, config: dict[str, Any]) -> QuantizationConfig | None:
    """What the checkpoint says, None where it says nothing.

    Args:
        side_files: where quantize_config.json and quant_config.json are looked for.
        config: the object in config.json.

    Raises:
        ModelError: an unknown or unsupported method, a value out of range, or two files that disagree.
    """
    statements: list[tuple[str, str, dict[str, Any]]] = []
    file = side_files.locate("config.json")
    for key in ("quantization_config", "compression_config"):  # the latter in compressed-tensors files of 2024
        given = config.get(key)
        if given is not None and not isinstance(given, dict):
            raise ModelError("must be an object", file=file, key=key, found=type(given).__name__)
        if given is not None:
            statements.append((file, f"{key}.", given))
    for name in ("quantize_config.json", "quant_config.json"):
        table = read_side_json(side_files, name)
        if table is not None:
            statements.append((side_files.locate(name), "", table))
    if not statements:
        return None
    stated = _merged([Reading(*statement).read() for statement in statements])
    if stated.quant_method == "gptq" and stated.sym is None:
        raise ModelError("is missing", file=stated.file, key="sym", allowed="true or false")
    return stated


def _merged(configs: list[QuantizationConfig]) -> QuantizationConfig:
    """The first, completed by what only another says. Raises `ModelError` where two disagree."""
    first = configs[0]
    for other in configs[1:]:
        facts = ["quant_method", "bits", "group_size"]
        if first.sym is not None and other.sym is not None:
            facts.append("sym")
        if first.format_given and other.format_given:
            facts.append("checkpoint_format")
        for key in facts:
            one, two = getattr(first, key), getattr(other, key)
            if one != two:
                raise ModelError(f"disagrees with {first.file}", file=other.file, key=key, found=two, allowed=str(one))
        default = replace(
            first.default,
            sym=other.sym if first.sym is None else first.sym,
            checkpoint_format=(first if first.format_given else other).checkpoint_format,
            word_carry=first.default.word_carry or other.default.word_carry,
        )
        first = replace(first, default=default, format_given=first.format_given or other.format_given)
    return first


class Reading:
    """One statement in a tool's words, on its way to a `QuantizationConfig`."""

    def __init__(self, file: str, prefix: str, table: dict[str, Any]) -> None:
        self.file, self._prefix, self.table = file, prefix, table

    def refuse(
        self, key: str, what: str, found: Any, allowed: str | None = None, hint: str | None = None
    ) -> ModelError:
        return ModelError(what, file=self.file, key=self._prefix + key, found=repr(found), allowed=allowed, hint=hint)

    def read(self) -> QuantizationConfig:
        from edgellm.formats import quantization_methods as methods

        table = self.table
        method = table.get("quant_method", table.get("method"))
        if method is None and "config_groups" in table:
            method = "compressed-tensors"
        elif method is None:
            method = "awq" if "zero_point" in table or "version" in table else "gptq"
        readers = {
            "gptq": methods.read_gptq,
            "awq": methods.read_awq,
            "auto-round": methods.read_auto_round,
            "intel/auto-round": methods.read_auto_round,
            "compressed-tensors": methods.read_compressed_tensors,
        }
        name = method.lower() if isinstance(method, str) else method
        if not isinstance(name, str) or name not in readers:
            raise self.refuse("quant_method", "quantization method not supported", method, SUPPORTED)
        return readers[name](self)

    def integer(self, key: str, *synonyms: str) -> int:
        """A required integer under any of its names."""
        for name in (key, *synonyms):
            if name in self.table:
                if type(self.table[name]) is not int:
                    raise self.refuse(name, "must be an integer", self.table[name])
                return self.table[name]
        raise self.refuse(key, "is missing", None)

    def boolean(self, key: str, default: bool | None) -> bool | None:
        value = self.table.get(key, default)
        if value is not None and type(value) is not bool:
            raise self.refuse(key, "must be true or false", value)
        return value

    def text(self, *keys: str) -> str | None:
        """The first of `keys` that is there and not null, in lower case."""
        for key in keys:
            value = self.table.get(key)
            if value is not None:
                if not isinstance(value, str):
                    raise self.refuse(key, "must be a string", value)
                return value.lower()
        return None

    def object(self, key: str) -> dict[str, Any]:
        value = self.table.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(key, "must be an object", value)
        return value or {}

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "must be a list of strings", value)
        return tuple(value)

    def check(self, scheme: LinearScheme, key: str = "") -> LinearScheme:
        """`scheme` back, proven to be within what can be read; `key` is the dotted path of its settings."""
        dot = f"{key}." if key else ""
        bits = _BITS[scheme.layout]
        if scheme.bits not in bits:
            raise self.refuse(
                f"{dot}bits", f"not supported for {scheme.layout}", scheme.bits, ", ".join(map(str, bits))
            )
        if scheme.group_size != -1 and not 1 <= scheme.group_size <= MAX_GROUP_SIZE:
            allowed = f"-1 (the whole row) or 1 to {MAX_GROUP_SIZE:,}"
            raise self.refuse(f"{dot}group_size", "out of range", scheme.group_size, allowed)
        formats = _FORMATS[scheme.layout]
        if scheme.checkpoint_format not in formats:
            what = f"{scheme.layout} variant not supported"
            hint = "Ask for the checkpoint in the plain layout."
            raise self.refuse(f"{dot}checkpoint_format", what, scheme.checkpoint_format, ", ".join(formats), hint)
        return scheme
