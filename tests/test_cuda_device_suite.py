"""The suite for machines with a GPU, on one that is emulated and with shapes that are tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.backends.cuda import driver
from edgellm.backends.cuda.shipped import CODE, INDEX
from tools import cuda_device_suite as suite
from tools.cuda_suite.settings import Settings
from tools.ptx_emulator.driver import FakeDriver

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeDriver(80)
    monkeypatch.setattr(driver, "load_library", lambda: fake)
    driver.forget()
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    tiny = str(tmp_path / "tiny.json")
    yield Settings(
        tmp_path / "out",
        large=tiny,
        small=tiny,
        decode_tokens=1,
        prompt_tokens=20,
        shape_tokens=(9,),
        golden=("llama-gqa",),
        golden_tokens=2,
        copy_bytes=1 << 16,
        matmul=0,
    )
    driver.forget()


def report(settings: Settings) -> dict:
    return json.loads((settings.folder / suite.REPORT).read_text())


def test_a_part_that_was_good_is_not_run_again(settings, monkeypatch, capsys):
    runs: list[str] = []

    def part(name: str, ok: bool) -> Callable:
        def run(settings: Settings, say: Callable) -> dict:
            runs.append(name)
            say(f"this is {name}")
            if name == "broken":
                raise RuntimeError("on fire")
            return {"ok": ok}

        return run

    parts = {name: part(name, name == "good") for name in ("good", "bad", "broken")}
    monkeypatch.setattr(suite, "PARTS", parts)
    assert suite.run(settings, list(parts)) == 1
    assert suite.run(settings, list(parts)) == 1
    assert runs == ["good", "bad", "broken", "bad", "broken"]
    assert suite.run(settings, ["good"], again=True) == 0
    assert report(settings)["broken"]["error"] == "RuntimeError: on fire"
    assert "not good: bad, broken" in capsys.readouterr().out


def test_no_such_part(tmp_path):
    with pytest.raises(SystemExit):
        suite.main([str(tmp_path), "--only", "device,nonsense"])


def test_the_device(settings, capsys):
    assert suite.run(settings, ["device"]) == 0
    assert report(settings)["device"]["architecture"] == "sm_80"
    assert "self-test: ok" in capsys.readouterr().out


@pytest.mark.skipif(not (CODE / INDEX).is_file(), reason="the kernels are not built")
def test_numerics_and_speed(settings):
    suite.run(settings, ["golden", "draws", "shapes", "decode", "host", "overlap", "prefill"])
    found = report(settings)
    assert {name: part.get("error") for name, part in found.items()} == dict.fromkeys(found)
    assert found["golden"]["ok"]
    assert found["draws"]["share"] == 1
    assert found["shapes"]["ok"]
    (decode,) = found["decode"]["models"].values()
    assert decode["weight_bytes"] > 0
    assert found["host"]["nodes"] == 2 + 1 + 5 + 1 + 2  # copies; embedding, a layer, lm_head, the choice
    assert found["overlap"]["ok"]
    assert found["overlap"]["gain"] > 0
    assert found["prefill"]["tokens_per_second"] > 0
