"""Whether a GPU does what it is told: a kernel is compiled, fed, launched by itself and from a graph, and read back."""

from __future__ import annotations

import numpy as np

from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.entry import Entry, Parameter
from edgellm.backends.cuda.graph import Graph
from edgellm.backends.cuda.memory import HostBuffer, Pool
from edgellm.backends.cuda.module import Module
from edgellm.backends.cuda.stream import Stream
from edgellm.errors import EdgeLLMError

#: y[i] = y[i] + step for i < count.
PTX = """\
.version 6.3
.target sm_70
.address_size 64

.visible .entry add_step(
	.param .u64 add_step_param_0,
	.param .u32 add_step_param_1,
	.param .u32 add_step_param_2
)
{
	.reg .pred %p<2>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<5>;

	ld.param.u64 %rd1, [add_step_param_0];
	ld.param.u32 %r1, [add_step_param_1];
	ld.param.u32 %r2, [add_step_param_2];
	mov.u32 %r3, %ctaid.x;
	mov.u32 %r4, %ntid.x;
	mov.u32 %r5, %tid.x;
	mad.lo.s32 %r6, %r3, %r4, %r5;
	setp.ge.u32 %p1, %r6, %r2;
	@%p1 bra $done;
	cvta.to.global.u64 %rd2, %rd1;
	mul.wide.u32 %rd3, %r6, 4;
	add.s64 %rd4, %rd2, %rd3;
	ld.global.u32 %r7, [%rd4];
	add.s32 %r8, %r7, %r1;
	st.global.u32 [%rd4], %r8;
$done:
	ret;
}
"""
ADD_STEP = Entry(
    name="add_step",
    parameters=(Parameter("y", "u32*"), Parameter("step", "u32"), Parameter("count", "u32")),
    threads=128,
    min_blocks=1,
    lowest=70,
    highest=None,
    dynamic_shared=0,
)
_COUNT = 1000
_STEP = 7


def self_test(index: int) -> str | None:
    """What goes wrong on GPU `index`, a sentence; None where all is well."""
    try:
        found = _steps_made(index)
    except EdgeLLMError as error:
        return str(error)
    wanted = np.arange(_COUNT, dtype=np.uint32) + 3 * _STEP
    if not (found == wanted).all():
        return f"{int((found != wanted).sum())} of {_COUNT} numbers came back wrong: the GPU or its driver is broken"
    return None


def _steps_made(index: int) -> np.ndarray:
    """0, 1, 2 ... after one launch and two replays of a graph, uint32 [_COUNT]."""
    device = open_device(index)
    stream, pool = Stream(device), Pool(device, "the self-test")
    host = HostBuffer(device, 4 * _COUNT).array.view(np.uint32)
    function = Module(device, PTX).function(ADD_STEP)
    host[:] = np.arange(_COUNT)
    address = pool.allocate(host.nbytes)
    launch = function.prepare((-(-_COUNT // ADD_STEP.threads),), y=address, step=_STEP, count=_COUNT)
    with device:
        stream.upload(address, host)
        launch.run(stream)
        graph = Graph(stream, lambda: launch.run(stream))
        graph.launch()
        graph.launch()
        stream.wait()  # the upload is done with `host` too
        stream.download(host, address)
        stream.wait()
    found = host.copy()
    pool.close()
    return found
