"""reliability.md A: what a hostile header may claim, and the error it ends in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeLLMError, ModelError
from edgellm.formats import open_checkpoint
from edgellm.formats.limits import MAX_HEADER_BYTES
from tests.formats.craft import entry, raw, tensor_file, with_header, write

GOOD = {"a": entry("F32", [2], 0, 8)}
EIGHT = bytes(8)


def one(name: str = "a", **fields: object) -> bytes:
    """A file whose only tensor has these fields changed."""
    return with_header({name: {**entry("F32", [2], 0, 8), **fields}}, EIGHT)


CASES = {
    "ST01-empty": (b"", "file is empty"),
    "ST02-short": (b"\x08\0\0", "too short"),
    "ST03-length-past-end": (raw(b"{}", length=100), "past the end of the file"),
    "ST04-length-max": (raw(b"{}", length=2**64 - 1), "past the end of the file"),
    "ST05-length-cap": (raw(b"{}", length=100_000_001), "past the end of the file"),
    "ST07-not-utf8": (raw(b'{"\xff": 1}'), "not UTF-8"),
    "ST08-not-json": (raw(b"{nonsense"), "not JSON"),
    "ST09-array": (raw(b"[1, 2]"), "must begin with '{'"),
    "ST09-null": (raw(b"null"), "must begin with '{'"),
    "ST10-truncated": (with_header(GOOD, bytes(7)), "lies outside the file"),
    "ST11-nested": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "holds more than tensors"),
    "ST11-nested-objects": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
    "ST12-nul": (raw(json.dumps(GOOD).encode() + b"\0", EIGHT), "not JSON"),
    "ST13-blank": (raw(b" " + json.dumps(GOOD).encode(), EIGHT), "must begin with '{'"),
    "ST14-twice": (
        raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', EIGHT),
        "same key twice",
    ),
    "ST15-reversed": (one(data_offsets=[8, 0]), "lies outside the file"),
    "ST16-past-end": (one(data_offsets=[0, 80]), "lies outside the file"),
    "ST17-negative": (one(data_offsets=[-8, 0]), "lies outside the file"),
    "ST18-float": (one(data_offsets=[0, 8.0]), "bad data_offsets"),
    "ST19-text": (one(data_offsets=["0", "8"]), "bad data_offsets"),
    "ST19-true": (one(shape=[], dtype="U8", data_offsets=[False, True]), "bad data_offsets"),
    "ST20-u64": (one(data_offsets=[0, 2**64]), "lies outside the file"),
    "ST20-one": (one(data_offsets=[8]), "bad data_offsets"),
    "ST21-overlap": (with_header({**GOOD, "b": entry("F32", [2], 4, 12)}, bytes(12)), "overlaps"),
    "ST21-hole": (with_header({**GOOD, "b": entry("F32", [2], 12, 20)}, bytes(20)), "gap"),
    "ST21-hole-first": (with_header({"a": entry("F32", [2], 4, 12)}, bytes(12)), "gap"),
    "ST22-trailing": (with_header(GOOD, bytes(9)), "bytes after the last tensor"),
    "ST24-product": (one(shape=[3]), "disagree"),
    "ST24-overflow": (one(shape=[2**31 - 1] * 3), "disagree"),
    "ST24-negative": (one(shape=[-2]), "bad shape"),
    "ST25-zero-and-huge": (one(shape=[0, 2**62], data_offsets=[0, 0]), "bad shape"),
    "ST26-rank": (one(shape=[1] * 65 + [2]), "too many dimensions"),
    "ST24-shape-object": (one(shape={}), "bad shape"),
    "ST24-shape-true": (one(shape=[True, 2]), "bad shape"),
    "ST27-unknown": (one(dtype="I4"), "unsupported dtype"),
    "ST27-number": (one(dtype=5), "unsupported dtype"),
    "ST27-complex": (one(dtype="C64", shape=[1]), "unsupported dtype"),
    "ST29-fp8": (one(dtype="F8_E4M3", shape=[8]), "floating point are not supported"),
    "ST29-fp8b": (one(dtype="F8_E5M2", shape=[8]), "floating point are not supported"),
    "ST29-fp4": (one(dtype="F4", shape=[16]), "floating point are not supported"),
    "ST30-bool": (one(dtype="BOOL", shape=[8]), "unsupported dtype"),
    "ST31-no-name": (one(""), "printable ASCII"),
    "ST31-nul": (one("a\0b"), "printable ASCII"),
    "ST31-escape": (one("\x1b[31m"), "printable ASCII"),
    "ST31-long": (one("n" * 1_000_000), "printable ASCII"),
    "ST31-bidi": (one("a\u202eb"), "printable ASCII"),
    "ST32-metadata-value": (with_header({"__metadata__": {"a": 1}, **GOOD}, EIGHT), "must be a string"),
    "ST32-metadata-list": (with_header({"__metadata__": [], **GOOD}, EIGHT), "must be an object"),
    "ST33-missing-field": (with_header({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "'data_offsets' is missing"),
    "ST33-entry-list": (with_header({"a": []}), "must be an object"),
    "no-tensors": (with_header({}), "holds no tensors"),
    "IX4-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    "CL9-gguf-inside": (b"GGUF" + bytes(60), "GGUF"),
    "CL9-zip-inside": (b"PK\x03\x04" + bytes(60), "pickle"),
    "CL9-pickle-inside": (b"\x80\x02}q" + bytes(60), "pickle"),
    "CL9-page": (b"<!DOCTYPE html><html>Not found</html>", "web page"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_header_ends_in_a_named_error(case, tmp_path):
    content, message = CASES[case]
    path = write(tmp_path / "model.safetensors", content)
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        open_checkpoint(path)
    assert time.process_time() - start < 2
    line = str(caught.value)
    assert message in line
    assert str(path) in line
    assert line.isprintable()
    assert len(line) < 2000


BOMBS = {
    "lists": b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 5_000_000 + b"{}]}",
    "members": b'{"a":' + b'"b","":' * 2_000_000 + b"1}",
    "members-at-cap": b'{"a":[' + b"{}," * 199_000 + b"{" + b'"":1e3,' * 1_390_000 + b'"x":1}]}',
    "one-long-text": b'{"' + b"x" * (MAX_HEADER_BYTES - 20) + b'":1}',
    "ST35-over-cap": b'{"a":1' + b" " * MAX_HEADER_BYTES + b"}",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_header_bomb_costs_little(case, tmp_path):
    path = write(tmp_path / "model.safetensors", raw(BOMBS[case]))
    script = """
import sys, time
import numpy, safetensors
from edgellm.errors import ModelError
from edgellm.formats import open_checkpoint
try:
    import resource
    size = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (size + 200_000_000, resource.RLIM_INFINITY))
except (ImportError, OSError):
    pass  # neither limits nor /proc here: only the time is judged
start = time.process_time()
try:
    open_checkpoint(sys.argv[1])
except ModelError:
    sys.exit(0 if time.process_time() - start < 2 else 3)
sys.exit(4)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, timeout=60, check=False)
    assert done.returncode == 0


def test_zero_sized_tensors_may_share_an_offset(tmp_path):
    table = {"a": entry("F32", [0], 0, 0), "b": entry("F32", [0, 3], 0, 0), "c": entry("F32", [2], 0, 8)}
    with open_checkpoint(write(tmp_path / "x.safetensors", with_header(table, EIGHT))) as checkpoint:
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a": (0,), "b": (0, 3), "c": (2,)}
        assert checkpoint.read("b").shape == (0, 3)


def test_unknown_fields_are_ignored_with_a_note(tmp_path):
    path = write(tmp_path / "x.safetensors", with_header({"a": entry("F32", [2], 0, 8, extra=1)}, EIGHT))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("a").tolist() == [0, 0]
        assert any("unknown fields" in note for note in checkpoint.notes)


def test_many_tensors_open_quickly(tmp_path):
    table = {f"model.layers.{i}.weight": entry("U8", [1], i, i + 1) for i in range(100_000)}
    path = write(tmp_path / "x.safetensors", with_header(table, bytes(100_000)))
    start = time.process_time()
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == 100_000
    assert time.process_time() - start < 5  # 1.4 s alone on one core


def test_every_dtype_is_read_bit_by_bit_also_unaligned(tmp_path):
    arrays = {
        "u8": np.arange(3, dtype=np.uint8),  # three bytes: what follows is misaligned
        "f32": np.array([[1.5, -2.25]], np.float32),
        "f16": np.array([1.5, 65504, 6e-8], np.float16),
        "bf16": np.array([0x3FC0, 0x7F7F, 0x0001], np.uint16),
        "i64": np.array([-1, 2**40]),
        "scalar": np.array(7, np.int32),
    }
    path = write(tmp_path / "x.safetensors", tensor_file(arrays))
    with open_checkpoint(path) as checkpoint:
        for name, array in arrays.items():
            read = checkpoint.read(name)
            np.testing.assert_array_equal(read, array)
            assert read.dtype == array.dtype
            assert read.shape == array.shape
            assert read.flags.writeable
        assert checkpoint.read_float32("bf16").tolist() == [1.5, 3.3895313892515355e38, 9.183549615799121e-41]
        assert checkpoint.read_float32("f16").dtype == np.float32
        with pytest.raises(ModelError, match=r"i64.*not a floating point tensor"):
            checkpoint.read_float32("i64")
        with pytest.raises(ModelError, match=r"nothing.*missing"):
            checkpoint.read("nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_block(tmp_path):
    path = tmp_path / "model.safetensors"
    os.mkfifo(path)
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            open_checkpoint(path)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout=2)
    assert not thread.is_alive()
    assert isinstance(errors[0], ModelError)
    assert "not a regular file" in str(errors[0])


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero on this system")
def test_a_device_is_refused():
    with pytest.raises(ModelError, match="not a regular file"):
        open_checkpoint("/dev/zero")


def test_truncation_after_open_is_an_error_not_a_signal(tmp_path):
    path = write(tmp_path / "x.safetensors", tensor_file({"a": np.zeros(100_000, np.float32)}))
    script = """
import os, sys
from edgellm.errors import ModelError
from edgellm.formats import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
os.truncate(sys.argv[1], 4096)
try:
    checkpoint.read("a")
except ModelError as error:
    sys.exit(0 if "changed its size" in str(error) else 3)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, timeout=30, check=False)
    assert done.returncode == 0


def test_a_short_read_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "x.safetensors", tensor_file({"a": np.zeros(100, np.float32)}))
    with open_checkpoint(path) as checkpoint:
        monkeypatch.setattr("edgellm.formats.reader._read_at", lambda *_: 0)
        with pytest.raises(ModelError, match="truncated while it was read"):
            checkpoint.read("a")


def test_a_read_error_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.safetensors", tensor_file({"a": np.zeros(100, np.float32)}))

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with open_checkpoint(path) as checkpoint:
        monkeypatch.setattr("edgellm.formats.reader._read_at", fail)
        with pytest.raises(ModelError, match="reading failed"):
            checkpoint.read("a")


def test_reads_work_without_preadv(tmp_path, monkeypatch):
    values = np.arange(1000, dtype=np.float32)
    path = write(tmp_path / "x.safetensors", tensor_file({"a": values[:7], "b": values}))
    monkeypatch.delattr(os, "preadv", raising=False)
    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("b"), values)


def test_a_replaced_file_keeps_its_old_content_while_open(tmp_path):
    path = write(tmp_path / "x.safetensors", tensor_file({"a": np.ones(4, np.float32)}))
    with open_checkpoint(path) as checkpoint:
        write(tmp_path / "y", tensor_file({"a": np.zeros(4, np.float32)}))
        os.replace(tmp_path / "y", path)
        assert checkpoint.read("a").tolist() == [1, 1, 1, 1]
        checkpoint.close()
        with pytest.raises(ModelError, match="replaced or changed"):
            checkpoint.read("a")


def test_threads_may_read_at_once(tmp_path):
    arrays = {str(i): np.full(5000, i, np.float32) for i in range(8)}
    failures = []
    with open_checkpoint(write(tmp_path / "x.safetensors", tensor_file(arrays))) as checkpoint:

        def work(name: str) -> None:
            for _ in range(20):
                if not (checkpoint.read(name) == float(name)).all():
                    failures.append(name)

        threads = [threading.Thread(target=work, args=(name,)) for name in arrays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def opens_or_is_refused(path: Path, data_bytes: int | None = None) -> None:
    """Either every tensor can be read, or the error is one of ours and names the file."""
    refusal = None
    try:
        with open_checkpoint(path) as checkpoint:
            infos = checkpoint.tensors.values()
            assert all(checkpoint.read(info.name).nbytes == info.nbytes for info in infos)
            assert data_bytes in (None, sum(info.nbytes for info in infos))
    except EdgeLLMError as error:
        refusal = error
    assert refusal is None or (isinstance(refusal, ModelError) and str(path) in str(refusal))


VALID = tensor_file({"a": np.arange(4, dtype=np.float32), "b": np.arange(6, dtype=np.int32)}, {"format": "pt"})


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_bytes_end_in_our_errors_or_in_data(tmp_path_factory, mutations, data):
    content = bytearray(VALID)
    for position, value in mutations:
        content[position] = value
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    opens_or_is_refused(write(tmp_path_factory.getbasetemp() / "mutated.safetensors", bytes(content)))


ENTRY = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets", "x"]),
    st.sampled_from(["F32", "U8", [], [4], [1], [2, 2], [0, 4], [0, 16], [4, 8], None, -1, 2**70, {}, "", [0.5, 1]]),
)


@given(st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRY | st.none(), max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_header_ends_in_our_errors_or_in_data(tmp_path_factory, table):
    path = write(tmp_path_factory.getbasetemp() / "any.safetensors", with_header(table, bytes(16)))
    opens_or_is_refused(path, data_bytes=16)
