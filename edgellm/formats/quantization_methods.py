"""The statements of GPTQ, AWQ, auto-round and compressed-tensors, each in its own words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgellm.formats.patterns import ModuleTable
from edgellm.formats.quantization import LinearScheme, QuantizationConfig, Reading

_UNQUANTIZED_BITS = 16  # auto-round writes 16 and more for "left alone"


def read_gptq(reading: Reading) -> QuantizationConfig:
    """AutoGPTQ, GPTQModel, and auto-round's `auto_gptq` export."""
    table = reading.table
    if reading.boolean("is_marlin_format", False):
        raise reading.refuse("is_marlin_format", "Marlin's repacked weights are not supported", True)
    given = reading.text("checkpoint_format", "format")
    pack_dtype = reading.text("pack_dtype")
    if pack_dtype not in (None, "int32"):
        raise reading.refuse("pack_dtype", "not supported", pack_dtype, "int32")
    scheme = LinearScheme(
        layout="gptq",
        bits=reading.integer("bits", "w_bit"),
        group_size=reading.integer("group_size", "q_group_size"),
        sym=reading.boolean("sym", None),
        checkpoint_format=given or "gptq",
        word_carry=_written_by_gptqmodel(table),
    )
    scheme = reading.check(scheme)
    return QuantizationConfig(
        quant_method="gptq",
        producer="gptq",
        file=reading.file,
        default=scheme,
        desc_act=bool(reading.boolean("desc_act", False)),
        format_given=given is not None,
        lm_head=bool(reading.boolean("lm_head", False)),
        overrides=_dynamic(reading, scheme),
    )


def read_awq(reading: Reading) -> QuantizationConfig:
    """AutoAWQ, and GPTQModel's AWQ, which says `sym` and writes zero points all the same."""
    version = reading.text("version", "checkpoint_format", "format")
    zero_point = reading.boolean("zero_point", None)
    scheme = LinearScheme(
        layout="awq",
        bits=reading.integer("bits", "w_bit"),
        group_size=reading.integer("group_size", "q_group_size"),
        sym=None if zero_point is None else not zero_point,
        checkpoint_format=version or "gemm",
    )
    scheme = reading.check(scheme)
    return QuantizationConfig(
        quant_method="awq",
        producer="awq",
        file=reading.file,
        default=scheme,
        format_given=version is not None,
        lm_head=bool(reading.boolean("lm_head", False)),
        ignore=reading.strings("modules_to_not_convert"),
        overrides=_dynamic(reading, scheme),
    )


def read_auto_round(reading: Reading) -> QuantizationConfig:
    """auto-round: `packing_format` tells the layout; anything but auto_gptq and auto_awq stores zeros as they are."""
    data_type = reading.text("data_type") or "int"
    packing = reading.text("packing_format", "backend") or "auto_round"
    if data_type != "int":
        raise reading.refuse("data_type", "not supported", data_type, "int")
    kind = packing.removeprefix("auto_round:")
    if "awq" in kind:
        layout, checkpoint_format = "awq", "gemm"
    elif kind in ("auto_gptq", "gptq"):
        layout, checkpoint_format = "gptq", "gptq"
    elif kind == "auto_round" or kind.startswith(("gptqmodel", "exllamav2", "tritonv2", "gptq:")):
        layout, checkpoint_format = "gptq", "gptq_v2"
    else:
        allowed = "auto_round:auto_gptq, auto_round:auto_awq, auto_round:gptqmodel, auto_round"
        raise reading.refuse("packing_format", "not supported", packing, allowed)
    scheme = LinearScheme(
        layout=layout,
        bits=reading.integer("bits"),
        group_size=reading.integer("group_size"),
        sym=reading.boolean("sym", None),
        checkpoint_format=checkpoint_format,
    )
    scheme = reading.check(scheme)
    return QuantizationConfig(
        quant_method=layout,
        producer="auto-round",
        file=reading.file,
        default=scheme,
        lm_head=bool(reading.boolean("lm_head", False)),
        overrides=_extra_config(reading, scheme),
    )


def read_compressed_tensors(reading: Reading) -> QuantizationConfig:
    """llm-compressor: `config_groups`, each with targets and a scheme for their weights."""
    groups = reading.object("config_groups")
    if not groups:
        raise reading.refuse("config_groups", "is missing or empty", reading.table.get("config_groups"))
    overrides = ModuleTable(reading.file, "config_groups")
    default: LinearScheme | None = None
    covers_all = False
    schemes = []
    for name, group in groups.items():
        key = f"config_groups.{name}"
        if not isinstance(group, dict):
            raise reading.refuse(key, "must be an object", group)
        scheme = _group_scheme(reading, key, group)
        schemes.append(scheme)
        for target in Reading(reading.file, f"{key}.", group).strings("targets"):
            if target == "Linear":  # a module type: weaker than any name
                default, covers_all = default or scheme, True
            elif target.startswith("re:"):
                overrides.add_pattern(target.removeprefix("re:"), scheme)
            else:
                overrides.add(target, scheme)
    return QuantizationConfig(
        quant_method="compressed-tensors",
        producer="compressed-tensors",
        file=reading.file,
        default=default or schemes[0],
        ignore=reading.strings("ignore"),
        overrides=overrides,
        # one group: tensors under a name that its targets do not spell can only be of this kind
        covers_all=covers_all or len(schemes) == 1,
    )


def _group_scheme(reading: Reading, key: str, group: dict[str, Any]) -> LinearScheme:
    if group.get("input_activations") is not None and not isinstance(group["input_activations"], dict):
        raise reading.refuse(f"{key}.input_activations", "must be an object", group["input_activations"])
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise reading.refuse(f"{key}.weights", "must be an object", weights)
    part = Reading(reading.file, f"{key}.weights.", weights)
    if (kind := part.text("type") or "int") != "int":
        raise part.refuse("type", "quantization to floating point is not supported", kind, "int")
    strategy = part.text("strategy") or ("group" if weights.get("group_size") else "tensor")
    if strategy not in ("group", "channel", "tensor"):
        raise part.refuse("strategy", "not supported", strategy, "group, channel, tensor")
    variant = Reading(reading.file, f"{key}.", group).text("format") or reading.text("format")
    scheme = LinearScheme(
        layout="compressed-tensors",
        bits=part.integer("num_bits"),
        group_size=part.integer("group_size") if strategy == "group" else -1,
        sym=part.boolean("symmetric", True),
        checkpoint_format=variant or "pack-quantized",
    )
    return reading.check(scheme, f"{key}.weights")


def _dynamic(reading: Reading, default: LinearScheme) -> ModuleTable:
    """GPTQModel's `dynamic`: {expression: settings}; "-:" before the expression means "not quantized"."""
    table = ModuleTable(reading.file, "dynamic")
    for text, settings in reading.object("dynamic").items():
        if text.startswith("-:"):
            continue  # such a module has a plain weight, which the tensors show
        scheme = _override(reading, f"dynamic.{text}", settings, default)
        table.add_pattern(text.removeprefix("+:"), scheme)
    return table


def _extra_config(reading: Reading, default: LinearScheme) -> ModuleTable:
    """auto-round's `extra_config`: {module name or expression: settings}; 16 bits mean "not quantized"."""
    table = ModuleTable(reading.file, "extra_config")
    for name, settings in reading.object("extra_config").items():
        if isinstance(settings, dict) and type(settings.get("bits")) is int and settings["bits"] >= _UNQUANTIZED_BITS:
            continue
        table.add(name, _override(reading, f"extra_config.{name}", settings, default))
    return table


def _override(reading: Reading, key: str, settings: Any, default: LinearScheme) -> LinearScheme:
    """`default` with the settings that are given."""
    if not isinstance(settings, dict):
        raise reading.refuse(key, "must be an object", settings)
    part = Reading(reading.file, f"{key}.", settings)
    changes: dict[str, Any] = {
        name: part.integer(name) for name in ("bits", "group_size") if settings.get(name) is not None
    }
    if settings.get("sym") is not None:
        changes["sym"] = part.boolean("sym", None)
    return reading.check(replace(default, **changes), key)


def _written_by_gptqmodel(table: dict[str, Any]) -> bool:
    meta = table.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    names = quantizer if isinstance(quantizer, list) else [quantizer]
    return any(isinstance(name, str) and name.lower().startswith("gptqmodel") for name in names)
