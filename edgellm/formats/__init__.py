"""Checkpoints: bytes on disk to named tensors and back.

`open_checkpoint` opens a safetensors file, a folder, shards with an index, or a single-file bundle;
`read_quantization` says how it is quantized, and `read_linear` gives each layer's weight as float32 or as one
canonical `QuantizedTensor`, from GPTQ, AWQ and compressed-tensors packings. `save_checkpoint` and `write_bundle` write.
The modules `gptq`, `awq` and `compressed_tensors` define the packings, both ways.
"""

from __future__ import annotations

from edgellm.formats import awq, compressed_tensors, gptq
from edgellm.formats.bundle import is_side_file, write_bundle
from edgellm.formats.checkpoint import Checkpoint, open_checkpoint
from edgellm.formats.dtypes import bfloat16_to_float32, float32_to_bfloat16
from edgellm.formats.fingerprint import fingerprint
from edgellm.formats.header import TensorInfo
from edgellm.formats.linear import describe_linear, open_linear, read_linear
from edgellm.formats.quantization import LinearScheme, QuantizationConfig, read_quantization
from edgellm.formats.quantized import QuantizedTensor
from edgellm.formats.stored import CodePlaces, StoredTensor
from edgellm.formats.writer import TensorSource, save_checkpoint, write_file

__all__ = [
    "Checkpoint",
    "CodePlaces",
    "LinearScheme",
    "QuantizationConfig",
    "QuantizedTensor",
    "StoredTensor",
    "TensorInfo",
    "TensorSource",
    "awq",
    "bfloat16_to_float32",
    "compressed_tensors",
    "describe_linear",
    "fingerprint",
    "float32_to_bfloat16",
    "gptq",
    "is_side_file",
    "open_checkpoint",
    "open_linear",
    "read_linear",
    "read_quantization",
    "save_checkpoint",
    "write_bundle",
    "write_file",
]
