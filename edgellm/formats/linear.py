"""The weight of one linear layer, whatever it is packed in: which tensors exist decides, their shapes must prove it.

`prefix` is the layer's name in the checkpoint ("model.layers.0.self_attn.q_proj"); its tensors are `prefix.weight`, or
`prefix.qweight`, `prefix.qzeros`, `prefix.scales` (GPTQ, AWQ), or `prefix.weight_packed` ... (compressed-tensors).
A bias, `prefix.bias`, is read by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from edgellm.errors import ModelError
from edgellm.formats import awq, compressed_tensors, gptq
from edgellm.formats.bits import WORD_BITS, words_for
from edgellm.formats.checkpoint import Checkpoint
from edgellm.formats.dtypes import FLOAT_DTYPES, bfloat16_to_float32
from edgellm.formats.quantization import LinearScheme, QuantizationConfig
from edgellm.formats.quantized import QuantizedTensor, group_count
from edgellm.formats.stored import WHOLE_BITS, StoredTensor

_KINDS = {  # the tensor that shows a kind of storage
    "qweight": "quantized",
    "weight_packed": "compressed-tensors",
    "weight": "dense",
}
_PARTS = (*_KINDS, "qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")


def read_linear(
    checkpoint: Checkpoint,
    prefix: str,
    quantization: QuantizationConfig | None,
    out_features: int,
    in_features: int,
    *,
    allow_nonfinite: bool = False,
) -> QuantizedTensor | np.ndarray:
    """The weight W of y = x W^T, [out_features, in_features].

    Args:
        quantization: what `read_quantization` found.
        allow_nonfinite: let NaN and infinity in the scales pass.

    Returns:
        float32 [out, in] where the weight is stored in floating point, else a `QuantizedTensor`.

    Raises:
        ModelError: a tensor is missing, has another dtype or shape than out, in and the config ask for, names groups
            that do not exist, or has scales that are not finite.
    """
    return _Linear(checkpoint, prefix, quantization).read(out_features, in_features, allow_nonfinite)


def open_linear(
    checkpoint: Checkpoint,
    prefix: str,
    quantization: QuantizationConfig | None,
    out_features: int,
    in_features: int,
) -> StoredTensor | QuantizedTensor | np.ndarray:
    """As `read_linear`, but codes that do not cross words stay in the file: such a weight comes as a `StoredTensor`."""
    linear = _Linear(checkpoint, prefix, quantization, lazy=True)
    return linear.read(out_features, in_features, allow_nonfinite=False)


def describe_linear(checkpoint: Checkpoint, prefix: str, quantization: QuantizationConfig | None) -> dict[str, Any]:
    """What is stored for one linear layer; of its data only `g_idx` is read.

    Returns:
        kind ("F16", "BF16", "F32", "gptq", "awq" or "compressed-tensors"), bits, nbytes (of all its tensors but the
        bias), and for quantized layers group_size (-1: the whole row), sym (None: not said), act_order and
        checkpoint_format.

    Raises:
        ModelError: the layer is missing, or stored in a way that `read_linear` refuses.
    """
    return _Linear(checkpoint, prefix, quantization).describe()


class _Linear:
    """One layer's tensors in one checkpoint; `lazy` leaves codes in the file where they do not cross words."""

    def __init__(
        self, checkpoint: Checkpoint, prefix: str, quantization: QuantizationConfig | None, lazy: bool = False
    ) -> None:
        self._checkpoint, self._prefix, self._quantization, self._lazy = checkpoint, prefix, quantization, lazy

    def read(self, out: int, inputs: int, allow_nonfinite: bool) -> StoredTensor | QuantizedTensor | np.ndarray:
        kind = self._kind()
        if kind == "dense":
            self._expect("weight", FLOAT_DTYPES, [(out, inputs)], "[out, in]")
            return self._checkpoint.read_float32(self._name("weight"))
        scheme = self._scheme(kind)
        read = {
            "gptq": self._read_gptq,
            "awq": self._read_awq,
            "compressed-tensors": self._read_packed,
            "int8": self._read_int8,
        }
        return read["int8" if kind == "int8" else scheme.layout](scheme, out, inputs, allow_nonfinite)

    def describe(self) -> dict[str, Any]:
        kind = self._kind()
        infos = [self._checkpoint.tensors[self._name(part)] for part in _PARTS if self._has(part)]
        nbytes = sum(info.nbytes for info in infos)
        if kind == "dense":
            weight = self._checkpoint.tensors[self._name("weight")]
            if weight.dtype not in FLOAT_DTYPES:
                raise self._refuse("weight", "not a floating point tensor", weight.dtype, ", ".join(FLOAT_DTYPES))
            return {"kind": weight.dtype, "bits": 32 if weight.dtype == "F32" else 16, "nbytes": nbytes}
        scheme = self._scheme(kind)
        sym = scheme.sym
        if scheme.layout == "compressed-tensors":
            sym = not self._has("weight_zero_point")
        return {
            "kind": scheme.layout,
            "bits": 8 if kind == "int8" else scheme.bits,
            "nbytes": nbytes,
            "group_size": scheme.group_size,
            "sym": sym,
            "act_order": self._has_act_order(scheme),
            "checkpoint_format": scheme.checkpoint_format,
        }

    def _has_act_order(self, scheme: LinearScheme) -> bool:
        part = {"gptq": "g_idx", "compressed-tensors": "weight_g_idx"}.get(scheme.layout, "")
        if not self._has(part):
            return False
        inputs = int(np.prod(self._checkpoint.tensors[self._name(part)].shape))
        return self._g_idx(part, scheme, inputs)[1]

    def _kind(self) -> str:
        kinds = [part for part in _KINDS if self._has(part)]
        if not kinds:
            stray = [part for part in _PARTS if self._has(part)]
            what = "the tensor is missing"
            raise self._refuse(
                "weight", what, f"only {', '.join(stray)}" if stray else None, "weight, qweight or weight_packed"
            )
        if len(kinds) > 1:
            raise self._refuse(kinds[0], f"the layer has both {kinds[0]} and {kinds[1]}")
        if kinds == ["weight"] and self._checkpoint.tensors[self._name("weight")].dtype == "I8":
            return "int8"
        return _KINDS[kinds[0]]

    def _scheme(self, kind: str) -> LinearScheme:
        if self._quantization is None:
            hint = "config.json has no quantization_config, and there is no quantize_config.json beside it."
            raise self._refuse(None, "the layer is quantized but nothing says how", hint=hint)
        scheme = self._quantization.scheme(self._prefix)
        packed = kind != "quantized"
        if packed != (scheme.layout == "compressed-tensors"):
            found = ", ".join(part for part in _PARTS if self._has(part))
            raise self._refuse(None, f"its tensors are not those of {scheme.layout}", found)
        if kind == "int8" and scheme.checkpoint_format == "pack-quantized":
            raise self._refuse("weight", "int8 where the config says pack-quantized", "I8")
        return scheme

    def _read_gptq(
        self, scheme: LinearScheme, out: int, inputs: int, allow_nonfinite: bool
    ) -> StoredTensor | QuantizedTensor:
        bits = scheme.bits
        groups = self._groups(scheme, inputs)
        for size, name in ((inputs, "in"), (out, "out")):
            if size * bits % WORD_BITS:
                raise self._refuse("qweight", f"{name}_features do not fill words of {bits}-bit codes", size)
        rows, columns = words_for(inputs, bits), words_for(out, bits)
        self._expect("qweight", ("I32", "U32"), [(rows, out)], f"[in * {bits} / 32, out]")
        self._expect("qzeros", ("I32", "U32"), [(groups, columns)], f"[ceil(in / group_size), out * {bits} / 32]")
        self._expect("scales", FLOAT_DTYPES, [(groups, out)], "[ceil(in / group_size), out]")
        tensors = {"qzeros": self._words("qzeros"), "scales": self._scales("scales", allow_nonfinite)}
        tensors |= self._g_idx("g_idx", scheme, inputs)[0]
        options = {
            "bits": bits,
            "group_size": scheme.group_size,
            "checkpoint_format": scheme.checkpoint_format,
            "word_carry": scheme.word_carry,
        }
        if self._lazy and bits in WHOLE_BITS:
            q = gptq.stored(tensors, partial(self._words, "qweight"), shape=(out, inputs), **options)
        else:
            q = gptq.unpack(tensors | {"qweight": self._words("qweight")}, **options)
        if scheme.sym:
            self._prove_zero_points(q, scheme)
        return q

    def _read_awq(
        self, scheme: LinearScheme, out: int, inputs: int, allow_nonfinite: bool
    ) -> StoredTensor | QuantizedTensor:
        groups = self._groups(scheme, inputs)
        version = scheme.checkpoint_format
        packed = out if version == "gemm" else inputs
        if packed % awq.NIBBLES:
            raise self._refuse("qweight", "features do not fill words of 4-bit codes", packed)
        if version == "gemm":
            width = out // awq.NIBBLES
            self._expect("qweight", ("I32", "U32"), [(inputs, width)], "[in, out / 8]")
            self._expect("qzeros", ("I32", "U32"), [(groups, width)], "[ceil(in / group_size), out / 8]")
            self._expect("scales", FLOAT_DTYPES, [(groups, out)], "[ceil(in / group_size), out]")
        else:
            width = awq.gemv_zeros_width(inputs, inputs if scheme.group_size == -1 else scheme.group_size)
            self._expect("qweight", ("I32", "U32"), [(out, inputs // awq.NIBBLES)], "[out, in / 8]")
            self._expect("qzeros", ("I32", "U32"), [(out, width)], "[out, padded groups / 8]")
            self._expect("scales", FLOAT_DTYPES, [(out, width * awq.NIBBLES)], "[out, padded groups]")
        tensors = {"qzeros": self._words("qzeros"), "scales": self._scales("scales", allow_nonfinite)}
        options = {"group_size": scheme.group_size, "version": version}
        if self._lazy:
            return awq.stored(tensors, partial(self._words, "qweight"), shape=(out, inputs), **options)
        return awq.unpack(tensors | {"qweight": self._words("qweight")}, **options)

    def _read_packed(
        self, scheme: LinearScheme, out: int, inputs: int, allow_nonfinite: bool
    ) -> StoredTensor | QuantizedTensor:
        bits = scheme.bits
        shapes = [(out, width) for width in compressed_tensors.widths(inputs, bits)]
        self._expect("weight_packed", ("I32", "U32"), shapes, f"[out, ceil(in * {bits} / 32)]")
        if self._has("weight_shape"):
            self._expect("weight_shape", ("I64", "I32"), [(2,)], "[2]")
            shape = self._read("weight_shape").tolist()
            if shape != [out, inputs]:
                raise self._refuse("weight_shape", "is not the shape of this layer", shape, str([out, inputs]))
        tensors = self._scale(scheme, out, inputs, allow_nonfinite)
        groups = self._groups(scheme, inputs)
        if self._has("weight_zero_point"):
            shapes = [(height, groups) for height in compressed_tensors.widths(out, bits)]
            self._expect("weight_zero_point", ("I32", "U32"), shapes, f"[ceil(out * {bits} / 32), groups]")
            tensors["weight_zero_point"] = self._words("weight_zero_point")
        elif scheme.sym is False:
            raise self._refuse("weight_zero_point", "the tensor is missing, the config says asymmetric")
        tensors |= self._g_idx("weight_g_idx", scheme, inputs)[0]
        options = {"bits": bits, "group_size": scheme.group_size}
        if self._lazy and bits in WHOLE_BITS:
            read_words = partial(self._words, "weight_packed")
            return compressed_tensors.stored(tensors, read_words, shape=(out, inputs), **options)
        tensors["weight_packed"] = self._words("weight_packed")
        return compressed_tensors.unpack(tensors, in_features=inputs, **options)

    def _read_int8(self, scheme: LinearScheme, out: int, inputs: int, allow_nonfinite: bool) -> QuantizedTensor:
        self._expect("weight", ("I8",), [(out, inputs)], "[out, in]")
        tensors = {"weight": self._read("weight"), **self._scale(scheme, out, inputs, allow_nonfinite)}
        if self._has("weight_zero_point"):
            self._expect("weight_zero_point", ("I8",), [tensors["weight_scale"].shape], "the shape of weight_scale")
            tensors["weight_zero_point"] = self._read("weight_zero_point")
        return compressed_tensors.unpack_int8(tensors, group_size=scheme.group_size)

    def _scale(self, scheme: LinearScheme, out: int, inputs: int, allow_nonfinite: bool) -> dict[str, np.ndarray]:
        groups = self._groups(scheme, inputs)
        shapes: list[tuple[int, ...]] = [(out, groups)]
        if scheme.group_size == -1:
            shapes += [(1,), (), (1, 1), (out,)]
        self._expect("weight_scale", FLOAT_DTYPES, shapes, "[out, groups]")
        return {"weight_scale": self._scales("weight_scale", allow_nonfinite)}

    def _groups(self, scheme: LinearScheme, inputs: int) -> int:
        return 1 if scheme.group_size == -1 else group_count(inputs, scheme.group_size)

    def _g_idx(self, part: str, scheme: LinearScheme, inputs: int) -> tuple[dict[str, np.ndarray], bool]:
        """The tensor, checked, under its name where the layer has one, and whether it permutes inputs."""
        if not self._has(part):
            return {}, False
        self._expect(part, ("I32", "I64"), [(inputs,)], "[in]")
        g_idx = self._read(part)
        if part == "weight_g_idx" and compressed_tensors.filled_in(g_idx) is None:
            return {}, False
        try:
            permutation = gptq.act_order(g_idx, inputs, inputs if scheme.group_size == -1 else scheme.group_size)
        except ModelError as error:
            raise self._refuse(part, error.what, error.found, error.allowed) from None
        return {part: g_idx}, permutation is not None

    def _prove_zero_points(self, q: StoredTensor | QuantizedTensor, scheme: LinearScheme) -> None:
        """Symmetric zero points are known, so a file in the other of v1 and v2 gives itself away."""
        middle = 1 << (q.bits - 1)
        wrong = middle - 1 if scheme.checkpoint_format == "gptq_v2" else middle + 1
        if q.zeros.size and (q.zeros == wrong).all():
            other = "gptq" if scheme.checkpoint_format == "gptq_v2" else "gptq_v2"
            setting = f"checkpoint_format to {other}"
            if self._quantization is not None and self._quantization.producer == "auto-round":
                setting = f"packing_format to auto_round:{'auto_gptq' if other == 'gptq' else 'gptqmodel'}"
            raise self._refuse(
                "qzeros",
                f"zero points are stored as {other} does, the config says {scheme.checkpoint_format}",
                f"{wrong} everywhere once decoded",
                f"{middle} for symmetric weights",
                f"Set {setting} in {self._config_file()}.",
            )

    def _scales(self, part: str, allow_nonfinite: bool) -> np.ndarray:
        stored = self._read(part)
        scales = bfloat16_to_float32(stored) if stored.dtype == np.uint16 else stored
        if not allow_nonfinite and not np.isfinite(scales).all():
            count = int(scales.size - np.isfinite(scales).sum())
            raise self._refuse(part, "scales that are not finite", f"{count} of {scales.size}")
        return scales

    def _words(self, part: str) -> np.ndarray:
        return self._read(part).view(np.int32)

    def _expect(self, part: str, dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]], formula: str) -> None:
        """The tensor is there with one of `dtypes` and one of `shapes`; nothing of its data is read."""
        info = self._checkpoint.tensors.get(self._name(part))
        if info is None:
            raise self._refuse(part, "the tensor is missing")
        if info.dtype not in dtypes:
            raise self._refuse(part, "wrong dtype", info.dtype, ", ".join(dtypes))
        if info.shape not in shapes:
            raise self._refuse(part, "wrong shape", list(info.shape), f"{list(shapes[0])} = {formula}")

    def _read(self, part: str) -> np.ndarray:
        return self._checkpoint.read(self._name(part))

    def _has(self, part: str) -> bool:
        return self._name(part) in self._checkpoint.tensors

    def _name(self, part: str) -> str:
        return f"{self._prefix}.{part}"

    def _config_file(self) -> str:
        return self._quantization.file if self._quantization is not None else "config.json"

    def _refuse(
        self, part: str | None, what: str, found: Any = None, allowed: str | None = None, hint: str | None = None
    ) -> ModelError:
        key = self._prefix if part is None else self._name(part)
        known = [name for name in (self._name(p) for p in (part or "", *_PARTS)) if name in self._checkpoint.tensors]
        file = self._checkpoint.tensors[known[0]].file if known else self._checkpoint.path
        return ModelError(what, file=file, key=key, found=found, allowed=allowed, hint=hint)
