"""Kernels compiled from their sources as they are asked for, for people who edit them: needs numba-cuda."""

from __future__ import annotations

from collections.abc import Iterable

from edgellm.backends.cuda.entry import Entry
from edgellm.backends.cuda.shipped import Shipped
from edgellm.errors import BackendUnavailable


class JitCode(Shipped):
    """What `Shipped` is, with texts that are compiled when a module first has them.

    Raises:
        BackendUnavailable: numba-cuda is not installed.
    """

    def __init__(self) -> None:
        try:
            from edgellm.backends.cuda.kernels.declare import all_kernels
            from edgellm.backends.cuda.ptx.compile import texts_of
        except ImportError as error:
            hint = "Install it (pip install 'edgellm[cuda13]', or cuda12), or leave --jit out."
            what = "the compiler of CUDA kernels is not installed"
            raise BackendUnavailable(what, key="kernels", found=str(error), hint=hint) from error
        declared = all_kernels()
        fields = Entry.__dataclass_fields__
        entries = {name: Entry(**{key: getattr(kernel, key) for key in fields}) for name, kernel in declared.items()}
        super().__init__(entries, {}, {})
        object.__setattr__(self, "_compile", lambda name: texts_of(declared[name]))

    def module(self, names: Iterable[str], capability: int) -> str:
        """As `Shipped.module`; compiles what it has not yet."""
        names = list(names)
        for name in names:
            if name in self.entries and name not in self.texts:
                self.texts[name] = self._compile(name)
        return super().module(names, capability)
