"""Writing: what stands on the disk afterwards, and after a failure."""

from __future__ import annotations

import json
import os
from collections import namedtuple

import numpy as np
import pytest

from edgellm.errors import InputError, ModelError, OutputError, UsageError
from edgellm.formats import TensorSource, open_checkpoint, save_checkpoint, write_bundle, write_file
from edgellm.formats.bundle import PREFIX, VERSION_KEY
from tests.formats.craft import tensor_file, write, write_model

TENSORS = {
    "bytes": np.arange(3, dtype=np.uint8),
    "embed": np.arange(12, dtype=np.uint16).reshape(3, 4),
    "norm": np.linspace(0, 1, 5, dtype=np.float32),
    "codes": np.arange(6, dtype=np.int32).reshape(2, 3),
}


def assert_holds(path, tensors):
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        for name, array in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)


def test_one_file_that_the_library_reads_too(tmp_path):
    from safetensors import safe_open

    folder = save_checkpoint(TENSORS, tmp_path / "out", metadata={"by": "me"}, side_files={"config.json": b"{}"})
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert_holds(folder, TENSORS)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "by": "me"}
        assert checkpoint.tensors["embed"].dtype == "BF16"
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("norm"), TENSORS["norm"])
    content = (folder / "model.safetensors").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("limit", [1, 24, 40, 1000])
def test_shards(tmp_path, limit):
    folder = save_checkpoint(TENSORS, tmp_path / "out", max_shard_bytes=limit)
    assert_holds(folder, TENSORS)
    shards = [name for name in os.listdir(folder) if name.endswith(".safetensors")]
    assert (len(shards) == 1) == (limit == 1000)
    if len(shards) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in TENSORS.values())
        assert set(index["weight_map"]) == set(TENSORS)


def test_sources_are_asked_one_at_a_time(tmp_path):
    alive = []

    def load(i):
        alive.append(i)
        return np.full(4, i, np.float32)

    sources = {str(i): TensorSource("F32", (4,), lambda i=i: load(i)) for i in range(3)}
    save_checkpoint(sources, tmp_path / "out")
    assert alive == [0, 1, 2]
    assert_holds(tmp_path / "out", {str(i): np.full(4, i, np.float32) for i in range(3)})


def test_a_source_that_gives_something_else(tmp_path):
    for array in (np.zeros(5, np.float32), np.zeros(4, np.float64)):
        with pytest.raises(UsageError, match="not what was announced"):
            save_checkpoint({"a": TensorSource("F32", (4,), lambda array=array: array)}, tmp_path / "out")
        assert os.listdir(tmp_path) == []


def test_arrays_that_safetensors_cannot_hold(tmp_path):
    with pytest.raises(UsageError, match="cannot be stored"):
        save_checkpoint({"a": np.zeros(3, np.complex64)}, tmp_path / "out")


def test_big_endian_and_strided_arrays_are_written_right(tmp_path):
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    save_checkpoint({"a": array, "scalar": np.float32(5)}, tmp_path / "out")
    assert_holds(tmp_path / "out", {"a": array, "scalar": np.float32(5)})


def test_a_folder_that_is_taken(tmp_path):
    folder = save_checkpoint(TENSORS, tmp_path / "out")
    with pytest.raises(OutputError, match="is there already"):
        save_checkpoint({"new": np.zeros(1, np.float32)}, folder)
    assert_holds(folder, TENSORS)
    save_checkpoint({"new": np.zeros(1, np.float32)}, folder, overwrite=True)
    assert_holds(folder, {"new": np.zeros(1, np.float32)})
    assert os.listdir(tmp_path) == ["out"]
    (tmp_path / "empty").mkdir()
    assert_holds(save_checkpoint(TENSORS, tmp_path / "empty"), TENSORS)
    with pytest.raises(OutputError, match="is there already"):
        save_checkpoint(TENSORS, write(tmp_path / "file", b""), overwrite=True)


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = save_checkpoint(TENSORS, tmp_path / "out")

    def fail():
        raise RuntimeError("power cut")

    broken = {"a": np.zeros(4, np.float32), "b": TensorSource("F32", (4,), fail)}
    with pytest.raises(RuntimeError, match="power cut"):
        save_checkpoint(broken, folder, overwrite=True)
    assert_holds(folder, TENSORS)
    assert os.listdir(tmp_path) == ["out"]


def test_a_kill_leaves_something_that_is_refused(tmp_path):
    """What a kill during writing leaves behind is the partial folder; reading it says so."""
    seen = []

    def look():
        seen.extend(os.listdir(tmp_path))
        return np.zeros(4, np.float32)

    save_checkpoint({"a": TensorSource("F32", (4,), look)}, tmp_path / "out", side_files={"config.json": b"{}"})
    (partial,) = seen
    assert partial == f"out.partial-{os.getpid()}"
    os.rename(tmp_path / "out", tmp_path / partial)
    with pytest.raises(ModelError, match="unfinished"):
        open_checkpoint(tmp_path / partial)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    for attempt in (lambda: save_checkpoint(TENSORS, tmp_path / "out"), lambda: write_file(tmp_path / "f", TENSORS)):
        with pytest.raises(OutputError, match="not enough space"):
            attempt()
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_while_writing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(TENSORS, tmp_path / "out")
    with pytest.raises(OutputError, match="No space left"):
        write_file(tmp_path / "file.safetensors", TENSORS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../config.json", "a/b", "", "..", "a\0"])
def test_side_files_have_plain_names(tmp_path, name):
    with pytest.raises(UsageError, match="plain file name"):
        save_checkpoint(TENSORS, tmp_path / "out", side_files={name: b""})
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path):
    write(tmp_path / "file", b"")
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(TENSORS, tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="is a folder"):
        write_file(tmp_path, TENSORS)


def test_a_bundle_holds_the_whole_model(tmp_path):
    folder = write_model(tmp_path / "model", TENSORS, {"model_type": "llama"})
    write(folder / "tokenizer.model", bytes(range(256)))
    write(folder / "chat_template.jinja", b"{{ messages }}")
    write(folder / "training_args.bin", b"not part of the model")
    (tmp_path / "alone").mkdir()
    bundle = write_bundle(folder, tmp_path / "alone" / "m.safetensors")
    write(bundle.parent / "config.json", b'{"model_type": "other"}')  # what is inside wins
    write(bundle.parent / "tokenizer.json", b"{}")
    assert_holds(bundle, TENSORS)
    with open_checkpoint(bundle) as checkpoint:
        files = checkpoint.side_files
        assert files.names() == ["chat_template.jinja", "config.json", "tokenizer.model"]
        assert json.loads(files.read("config.json")) == {"model_type": "llama"}
        assert files.read("tokenizer.model") == bytes(range(256))
        assert files.read("tokenizer.json") is None
        assert files.locate("config.json") == f"{bundle}:config.json"
        again = write_bundle(checkpoint, tmp_path / "again.safetensors")
    assert again.read_bytes() == bundle.read_bytes()


def test_a_bundle_of_shards(tmp_path):
    save_checkpoint(TENSORS, tmp_path / "model", max_shard_bytes=1, side_files={"config.json": b"{}"})
    assert_holds(write_bundle(tmp_path / "model", tmp_path / "one.safetensors"), TENSORS)


def test_a_bundle_refuses_to_overwrite_its_source_or_to_lack_a_config(tmp_path):
    path = write(tmp_path / "m.safetensors", tensor_file(TENSORS))
    with pytest.raises(ModelError, match=r"needs a config.json"):
        write_bundle(path, tmp_path / "b.safetensors")
    write(tmp_path / "config.json", b"{}")
    with pytest.raises(OutputError, match="its own source"):
        write_bundle(path, path)
    with pytest.raises(InputError):
        write_bundle(tmp_path / "nothing", tmp_path / "b.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "m.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "version", "message"),
    [
        ({"a": np.zeros(1, np.float32)}, "2", "unknown bundle version"),
        ({"a": np.zeros(1, np.float32), PREFIX + "../x": np.zeros(1, np.uint8)}, "1", "not a plain file name"),
        ({"a": np.zeros(1, np.float32), PREFIX: np.zeros(1, np.uint8)}, "1", "not a plain file name"),
        ({"a": np.zeros(1, np.float32), PREFIX + "config.json": np.zeros(1, np.int32)}, "1", "must be U8"),
        ({"a": np.zeros(1, np.float32), PREFIX + "config.json": np.zeros((1, 1), np.uint8)}, "1", "must be U8"),
        ({PREFIX + "config.json": np.zeros(1, np.uint8)}, "1", "holds no tensors"),
        ({"a": np.zeros(1), **{f"{PREFIX}{i}": np.zeros(1, np.uint8) for i in range(65)}}, "1", "too many files"),
    ],
)
def test_a_bundle_that_is_refused(tmp_path, tensors, version, message):
    tensors = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in tensors.items()
    }
    path = write(tmp_path / "b.safetensors", tensor_file(tensors, {VERSION_KEY: version}))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(path)


def test_files_inside_a_bundle_are_bounded_together(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.formats.bundle.MAX_BUNDLED_BYTES", 10)
    tensors = {"a": np.zeros(1, np.float32), PREFIX + "config.json": np.zeros(11, np.uint8)}
    path = write(tmp_path / "b.safetensors", tensor_file(tensors, {VERSION_KEY: "1"}))
    with pytest.raises(ModelError, match="too large"):
        open_checkpoint(path)
