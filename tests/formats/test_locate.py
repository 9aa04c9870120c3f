"""reliability.md B and CL9: what a path may mean, and what an index may claim."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgellm.errors import InputError, ModelError
from edgellm.formats import open_checkpoint
from edgellm.formats.limits import MAX_OPEN_SHARDS
from tests.formats.craft import tensor_file, write

INDEX = "model.safetensors.index.json"
A = tensor_file({"a": np.ones(2, np.float32)})
B = tensor_file({"b": np.zeros(2, np.float32)})


def sharded(folder, weight_map, **files):
    """A folder with an index and shard files one.safetensors, two.safetensors ..."""
    for name, content in files.items():
        write(folder / f"{name}.safetensors", content)
    write(folder / INDEX, {"metadata": {"total_size": -1}, "weight_map": weight_map})
    return folder


def refused(path, *messages, kind=ModelError):
    start = time.process_time()
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert time.process_time() - start < 2
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "C:\\x.safetensors",
        "a/../../b.safetensors",
        "..",
        "",
        "x\0.safetensors",
        "https://example.org/x.safetensors",
        "x.bin",
        "x.safetensors\n",
        ".safetensors/../x",
        5,
        None,
        ["one.safetensors"],
    ],
)
def test_ix1_a_shard_name_is_never_a_path(tmp_path, name):
    refused(sharded(tmp_path, {"a": name}), INDEX, "weight_map.a", "not the name of a shard")


def test_ix2_a_tensor_that_its_shard_lacks(tmp_path):
    refused(sharded(tmp_path, {"a": "one.safetensors", "c": "one.safetensors"}, one=A), "one.safetensors: c", "lacks")


def test_ix2_tensors_that_the_index_does_not_name_are_ignored(tmp_path):
    both = tensor_file({"a": np.ones(2, np.float32), "rotary.inv_freq": np.ones(2, np.float32)})
    with open_checkpoint(sharded(tmp_path, {"a": "one.safetensors"}, one=both)) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        assert any("1 tensors" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("holder", "message"), [("one", "a: the tensor is in two shards"), ("two", "a: the index names another shard")]
)
def test_ix3_the_same_tensor_in_two_shards(tmp_path, holder, message):
    one, two = (tensor_file({name: np.ones(2, np.float32) for name in names}) for names in ("ac", "ad"))
    weight_map = {"a": f"{holder}.safetensors", "c": "one.safetensors", "d": "two.safetensors"}
    refused(sharded(tmp_path, weight_map, one=one, two=two), message)


def test_ix4_a_missing_empty_or_pointer_shard(tmp_path):
    refused(sharded(tmp_path, {"a": "one.safetensors"}), INDEX, "one.safetensors", "missing")
    refused(sharded(tmp_path, {"a": "one.safetensors"}, one=b""), "one.safetensors", "empty")
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    refused(sharded(tmp_path, {"a": "one.safetensors"}, one=pointer), "one.safetensors", "Download the real file")


def test_ix4_a_shard_that_is_no_file(tmp_path):
    (tmp_path / "one.safetensors").mkdir()
    refused(sharded(tmp_path, {"a": "one.safetensors"}), "not a regular file")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 5])
def test_ix5_a_weight_map_of_another_type(tmp_path, weight_map):
    refused(sharded(tmp_path, weight_map), INDEX, "weight_map")


def test_ix5_too_many_shards(tmp_path):
    refused(sharded(tmp_path, {f"t{i}": f"s{i}.safetensors" for i in range(1025)}), "too many shards")
    (tmp_path / INDEX).write_text(
        '{"weight_map":{' + ",".join(f'"{i}":"{i}.safetensors"' for i in range(600_000)) + "}}"
    )
    refused(tmp_path, INDEX)
    (tmp_path / INDEX).write_text('{"weight_map":{' + ",".join(f'"{i}":"x"' for i in range(600_000)) + "}}")
    refused(tmp_path, "too many tensors")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map":' * 100_000, '{"weight_map":{"a":"x","a":"y"}}'])
def test_an_index_that_is_no_json_object(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path, INDEX)


def test_ix6_total_size_is_not_believed(tmp_path):
    folder = sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}, one=A, two=B)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("a").tolist() == [1, 1]
        assert checkpoint.read("b").tolist() == [0, 0]


@pytest.mark.parametrize("named", ["", INDEX, "model-00002-of-00002.safetensors"])
def test_a_sharded_checkpoint_by_any_of_its_names(tmp_path, named):
    one, two = (f"model-0000{i}-of-00002" for i in (1, 2))
    sharded(tmp_path, {"a": f"{one}.safetensors", "b": f"{two}.safetensors"}, **{one: A, two: B})
    write(tmp_path / "consolidated.safetensors", b"not even looked at")
    with open_checkpoint(tmp_path / named) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}
        assert [file.name for file in checkpoint.files] == [f"{one}.safetensors", f"{two}.safetensors"]


def test_numbered_shards_without_an_index(tmp_path):
    write(tmp_path / "m-00001-of-00002.safetensors", A)
    write(tmp_path / "m-00002-of-00002.safetensors", B)
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}
    write(tmp_path / "m-00002-of-00002.safetensors", A)
    refused(tmp_path, "a: the tensor is in two shards")
    os.remove(tmp_path / "m-00002-of-00002.safetensors")
    write(tmp_path / "other.safetensors", B)
    refused(tmp_path, "holds 2 safetensors files and no index")


def test_more_shards_than_open_files(tmp_path):
    names = [f"model-{i:05d}-of-00009" for i in range(1, 10)]
    shards = {name: tensor_file({name: np.full(3, i, np.float32)}) for i, name in enumerate(names)}
    sharded(tmp_path, {name: f"{name}.safetensors" for name in names}, **shards)
    with open_checkpoint(tmp_path) as checkpoint:
        for _ in range(2):
            for i, name in enumerate(names):
                assert checkpoint.read(name).tolist() == [i] * 3
        assert len(checkpoint._opened) == MAX_OPEN_SHARDS


def test_one_safetensors_file_of_any_name_and_its_folder(tmp_path):
    path = write(tmp_path / "gptq_model-4bit-128g.safetensors", A)
    write(tmp_path / "config.json", b'{"x": 1}')
    for named in (tmp_path, path, str(path)):
        with open_checkpoint(named) as checkpoint:
            assert checkpoint.files == [path]
            assert checkpoint.side_files.read("config.json") == b'{"x": 1}'


def test_model_safetensors_is_preferred_over_others(tmp_path):
    write(tmp_path / "consolidated.safetensors", B)
    write(tmp_path / "model.safetensors", A)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_a_link_out_of_the_folder_is_followed(tmp_path):
    """The hub's cache is made of such links: snapshots/<commit>/model.safetensors -> ../../blobs/<hash>."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    blob = write(tmp_path / "blobs" / "0123abcd", A)
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(blob)
    write(tmp_path / "snapshot" / "config.json", b"{}")
    with open_checkpoint(tmp_path / "snapshot" / "model.safetensors") as checkpoint:
        assert checkpoint.side_files.read("config.json") == b"{}"
    with open_checkpoint(blob) as checkpoint:  # no suffix at all
        assert list(checkpoint.tensors) == ["a"]


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    refused(tmp_path / "model.safetensors", "link to nothing", kind=InputError)
    refused(tmp_path, "model.safetensors", kind=InputError)


def test_a_link_that_leads_in_a_circle(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "model.safetensors", kind=InputError)


@pytest.mark.parametrize(
    ("name", "message"),
    [("m.gguf", "GGUF"), ("m.bin", "ickle"), ("m.pt", "ickle"), ("m.onnx", "ONNX"), ("config.json", "folder")],
)
def test_cl9_a_file_of_another_kind(tmp_path, name, message):
    refused(write(tmp_path / name, bytes(64)), name, message)
    if not name.endswith("json"):
        refused(tmp_path, "without safetensors")


@pytest.mark.parametrize(
    "path", ["https://huggingface.co/x/y", "-", "", "no/such/file", "nul\0", "x" * 5000], ids=lambda path: path[:12]
)
def test_cl9_a_path_that_is_nothing(path):
    refused(path, kind=InputError)


def test_an_unfinished_conversion_is_refused(tmp_path):
    folder = tmp_path / "model.partial-123"
    folder.mkdir()
    write(folder / "model.safetensors", A)
    refused(folder, "unfinished conversion")
    refused(write(tmp_path / "m.safetensors.partial-77", A), "unfinished conversion")


def test_an_adapter_is_no_model(tmp_path):
    write(tmp_path / "adapter_model.safetensors", A)
    refused(tmp_path, "LoRA adapter")


def test_few_file_descriptors_are_enough(tmp_path):
    names = [f"model-{i:05d}-of-00040" for i in range(1, 41)]
    shards = {name: tensor_file({name: np.ones(1, np.float32)}) for name in names}
    sharded(tmp_path, {name: f"{name}.safetensors" for name in names}, **shards)
    script = """
import resource, sys
import numpy, safetensors
from edgellm.formats import open_checkpoint
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
with open_checkpoint(sys.argv[1]) as checkpoint:
    sys.exit(0 if all(checkpoint.read(name) == 1 for name in checkpoint.tensors) else 3)
"""
    pytest.importorskip("resource", reason="no resource limits on this system")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, timeout=30, check=False)
    assert done.returncode == 0


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "without safetensors")
