"""How a linear is to be quantized: bits, groups, symmetric or not, order, and how scales are found."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import UsageError

BITS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, -1)
SEARCHES = ("minmax", "mse")


@dataclass(frozen=True)
class Scheme:
    """What a quantizer is asked for; every combination can be written as GPTQ v1, those of 4 bits without order as AWQ.

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        group_size: inputs that share a scale; -1 for a whole row.
        sym: the zero point is 2**(bits - 1) everywhere; else it is found for every group, 1 to 2**bits - 1, which
            is what every reader of GPTQ v1 and of AWQ understands alike.
        desc_act: GPTQ takes columns by falling diagonal of the Hessian (act-order), and groups follow that order.
        static_groups: GPTQ finds all scales from the untouched weights, in the order of the inputs; together with
            desc_act no permutation is left in the file.
        search: "minmax" takes scales from each group's range, "mse" shrinks the range to where the squared error is
            smallest.

    Raises:
        UsageError: a value that is not among those.
    """

    bits: int = 4
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False
    static_groups: bool = False
    search: str = "minmax"

    def __post_init__(self) -> None:
        for key, allowed in (("bits", BITS), ("group_size", GROUP_SIZES)):
            found = getattr(self, key)
            if isinstance(found, bool) or not isinstance(found, int) or found not in allowed:
                raise UsageError("not supported", key=key, found=found, allowed=", ".join(map(str, allowed)))
        for key in ("sym", "desc_act", "static_groups"):
            if not isinstance(getattr(self, key), bool):
                raise UsageError("not a flag", key=key, found=getattr(self, key), allowed="true, false")
        if self.search not in SEARCHES:
            raise UsageError("unknown", key="search", found=self.search, allowed=", ".join(SEARCHES))

    def group_width(self, in_features: int) -> int:
        """Inputs a group, for a linear of so many: `group_size`, or all of them."""
        return in_features if self.group_size == -1 else self.group_size
