"""What a file that is not safetensors probably is, and what to do about it."""

from __future__ import annotations

_CONVERT = "Use the safetensors checkpoint that it was made from."
_PICKLE = "Pickle files can run code and are never loaded; ask for safetensors, or convert with transformers."
_PAGE = ("this is a web page, not a model", "The download failed; check the address.")

# how a file begins -> (what it is, what to do)
MAGICS: dict[bytes, tuple[str, str]] = {
    b"GGUF": ("this is a GGUF file, which is not supported", _CONVERT),
    b"version https://git-lfs": ("this is a git-lfs pointer, not the file itself", "Download the real file."),
    b"PK\x03\x04": ("this is a PyTorch (zip and pickle) file", _PICKLE),
    b"\x80\x02": ("this is a pickle file", _PICKLE),
    b"<!DOCTYPE": _PAGE,
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
}

# how its name ends -> the same
SUFFIXES: dict[str, tuple[str, str]] = {
    ".gguf": ("GGUF is not supported", _CONVERT),
    ".ggml": ("GGML is not supported", _CONVERT),
    ".onnx": ("ONNX is not supported", _CONVERT),
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), ("a pickle checkpoint is not supported", _PICKLE)),
    **dict.fromkeys((".json", ".jinja", ".model", ".txt"), ("holds no weights", "Name the model's folder instead.")),
}
