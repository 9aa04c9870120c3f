"""float32 functions of one thread. None becomes a call; a true division (`a / b`) would: multiply by `rcp(b)`."""

from __future__ import annotations

import math

from edgellm.backends.cuda.ptx.asm import asm
from edgellm.backends.cuda.ptx.function import device
from edgellm.backends.cuda.ptx.types import f32, i32, u32

_LOG2_E = f32(1.4426950408889634)
_LOG2_E_REST = f32(1.4426950408889634 - 1.4426950216293335)  # what float32 of log2(e) lacks
_TWO_OVER_SQRT_PI = f32(2 / math.sqrt(math.pi))


@asm("fma.rn.f32 $0, $1, $2, $3;")
def fma(a: f32, b: f32, c: f32) -> f32:
    """a * b + c, rounded once."""


@asm("max.f32 $0, $1, $2;")
def fmax(a: f32, b: f32) -> f32:
    """The larger; of a number and NaN the number."""


@asm("min.f32 $0, $1, $2;")
def fmin(a: f32, b: f32) -> f32:
    """The smaller; of a number and NaN the number."""


@asm("abs.f32 $0, $1;")
def fabs(a: f32) -> f32:
    """|a|."""


@asm("ex2.approx.ftz.f32 $0, $1;")
def ex2(a: f32) -> f32:
    """2^a to 2 ulp; tiny results become 0."""


@asm("lg2.approx.ftz.f32 $0, $1;")
def lg2(a: f32) -> f32:
    """log2(a), absolute error 2^-22 where a is near 1, else relative 2^-22."""


@asm("rsqrt.approx.ftz.f32 $0, $1;")
def rsqrt(a: f32) -> f32:
    """1 / sqrt(a), relative error 2^-22.9."""


@asm("sqrt.approx.ftz.f32 $0, $1;")
def sqrt(a: f32) -> f32:
    """sqrt(a), relative error 2^-23."""


@asm("rcp.approx.ftz.f32 $0, $1;")
def rcp(a: f32) -> f32:
    """1 / a to 1 ulp; 0 where a is 2^126 or more."""


@asm("tanh.approx.f32 $0, $1;", lowest=75)
def tanh_fast(a: f32) -> f32:
    """tanh(a), relative error 2^-11: see `tanh` for a better one."""


@asm("cvt.rni.f32.f32 $0, $1;")
def rint(a: f32) -> f32:
    """The nearest whole number, halves to even."""


@asm("cvt.rni.s32.f32 $0, $1;")
def round_i32(a: f32) -> i32:
    """The nearest whole number as int32, halves to even, clamped; NaN gives 0."""


@asm("cvt.rn.f32.s32 $0, $1;")
def f32_of_i32(a: i32) -> f32:
    """An int32 as the nearest float."""


@asm("cvt.rn.f32.u32 $0, $1;")
def f32_of_u32(a: u32) -> f32:
    """A u32 as the nearest float."""


@device
def exp(x):
    """e^x, relative error below 5e-7 down to e^-87; less becomes 0."""
    whole = rint(fmax(fmin(x * _LOG2_E, f32(128.0)), f32(-160.0)))
    part = fma(x, _LOG2_E_REST, fma(x, _LOG2_E, -whole))
    return ex2(fmax(part, f32(-160.0))) * ex2(whole)


@device
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return rcp(f32(1.0) + exp(-x))


@device
def tanh(x):
    """tanh(x), relative error below 2e-6."""
    magnitude = fabs(x)
    square = x * x
    small = fma(square * x, fma(square, fma(square, f32(-17 / 315), f32(2 / 15)), f32(-1 / 3)), x)
    grown = exp(f32(-2.0) * magnitude)
    large = (f32(1.0) - grown) * rcp(f32(1.0) + grown)
    signed = large if x > f32(0.0) else -large
    return small if magnitude < f32(0.2) else signed


@device
def erf(x):
    """The error function, to float32."""
    return f32(math.erf(x))
