"""Instructions that a target or PTX version does not have."""

from __future__ import annotations

import pytest

from tests.backends.cuda.ptx_kernels import HEADER
from tools.ptx_emulator.features import too_new
from tools.ptx_emulator.parser import parse

BODY = ".visible .entry kernel() {{ .reg .b32 a, b, c, d; .reg .b64 p; .reg .b16 h; {code} ret; }}"


@pytest.mark.parametrize(
    ("code", "target", "version"),
    [
        ("cp.async.wait_all;", "sm_80", "7.0"),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {a}, [b];", "sm_75", "6.5"),
        ("fma.rn.bf16x2 a, b, c, d;", "sm_80", "7.0"),
        ("add.rn.bf16x2 a, b, c;", "sm_90", "7.8"),
        ("cvt.rn.f16x2.f32 a, b, c;", "sm_80", "7.0"),
        ("griddepcontrol.wait;", "sm_90", "7.8"),
        ("tanh.approx.f32 a, b;", "sm_75", "7.0"),
        ("redux.sync.add.u32 a, b, -1;", "sm_80", "7.0"),
        ("ld.global.nc.L1::no_allocate.u32 a, [p];", "sm_70", "7.4"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {a,b,c,d}, {a,b}, {c}, {a,b,c,d};", "sm_75", "6.5"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {a,b,c,d}, {a,b,c,d}, {c,d}, {a,b,c,d};", "sm_80", "7.0"),
    ],
)
def test_what_is_too_new_is_told(code: str, target: str, version: str) -> None:
    def complaints(target: str, version: str) -> list[str]:
        header = HEADER.replace("sm_90", target).replace("8.0", version)
        return list(too_new(parse(header + BODY.format(code=code))))

    assert complaints(target, version) == []
    assert complaints("sm_90", "8.0") == []
    older = {"sm_70": "sm_60", "sm_75": "sm_70", "sm_80": "sm_75", "sm_90": "sm_89"}[target]
    if target != "sm_70":
        assert f"requires .target {target}" in complaints(older, "8.0")[0]
    assert f"requires PTX ISA .version {version}" in complaints("sm_90", "6.0")[0]


def test_plain_instructions_need_nothing() -> None:
    text = HEADER.replace("sm_90", "sm_70").replace("8.0", "6.3") + BODY.format(code="add.u32 a, b, c;")
    assert list(too_new(parse(text))) == []
