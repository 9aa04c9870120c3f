"""The compiler's PTX made plain: one kernel's body under names of our own.

The compiler names an entry after the Python function and its types, counts shared arrays through, and writes the newest
version of the language that it knows. Here the entry is called as the kernel is, its parameters <kernel>_param_0 ...,
its variables <kernel>_shared_0 ...; comments go, but for what waits for newer devices (`shipped.ready`). The same
kernel gives the same text wherever it is compiled, and bodies of several kernels can stand in one module under one
header (`shipped.header`), of a version that old drivers take.
"""

from __future__ import annotations

import re

from edgellm.errors import EdgeLLMError

_ENTRY = re.compile(r"\.visible \.entry (\w+)\(")
_VARIABLE = re.compile(
    r"^(?:\.visible |\.extern )?(\.shared|\.global|\.const|\.common \.global) .*?(\w+)(?:\[\d*\])?(?: = .*)?;", re.M
)
_OUTSIDE = re.compile(r"^\s*(?:\.extern )?\.func\b|^\s*call(?:\.uni)?\b", re.M)


def body(ptx: str, name: str) -> str:
    """The kernel's own text of a compiled module: variables and entry, no header, no comments.

    Raises:
        EdgeLLMError: there is not one entry, or something stayed a call.
    """
    text = re.sub(r"//(?!\d+ )[^\n]*", "", ptx)
    text = re.sub(r"^\.(version|target|address_size)\b.*$", "", text, flags=re.M)
    entries = _ENTRY.findall(text)
    if len(entries) != 1:
        raise EdgeLLMError("a kernel's code does not have one entry", key=name, found=entries, allowed="one entry")
    calls = _OUTSIDE.search(text)
    if calls is not None:
        raise EdgeLLMError("something in a kernel was not compiled into it but is called", key=name, found=calls[0])
    text = text.replace(entries[0], name)
    counted = 0
    for kind, variable in _VARIABLE.findall(text):
        if kind == ".common .global":  # numba's environment of the function, which no kernel reads
            text = re.sub(rf"^\.common .*\b{variable}\b.*\n", "", text, flags=re.M)
            continue
        text = re.sub(rf"\b{variable}\b", f"{name}_{kind[1:]}_{counted}", text)
        counted += 1
    text = text.replace(".visible .shared", ".shared").replace(".visible .global", ".global")
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and line != ";") + "\n"
