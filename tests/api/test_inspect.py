"""`edgellm.inspect` and where the embedded model is looked for."""

from __future__ import annotations

import json

import pytest

import edgellm
from edgellm.api import embedded
from tests.golden_models import cases


@pytest.mark.parametrize("case", cases("now"), ids=str)
def test_facts_of_every_golden_model_are_json(case):
    facts = edgellm.inspect(case.folder)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["model_type"] == case.row["model_type"]
    assert facts["parameters"] > 0
    assert sum(facts["dtypes"].values()) == facts["tensors"]
    assert facts["tensor_bytes"] <= facts["file_bytes"]


def test_facts_of_a_chat_model(tiny):
    (tiny / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# Card\nlicense: none\n")
    facts = edgellm.inspect(tiny)
    assert facts["licence"] == "apache-2.0"
    assert facts["chat_template"].endswith("tokenizer_config.json: chat_template")
    assert facts["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert facts["eos_token_ids"] == [256, 258]
    assert facts["max_position_embeddings"] == 1024
    assert facts["sliding_windows"] == {}
    (tiny / "README.md").write_text("no front matter\nlicense: none\n")
    (tiny / "LICENSE.txt").write_text("MIT")
    assert edgellm.inspect(tiny)["licence"] == "LICENSE.txt"


def test_windows_are_counted(tmp_path):
    from tests.api.models import write_model

    folder = write_model(tmp_path / "m", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=64)
    assert edgellm.inspect(folder)["sliding_windows"] == {"64": 2}
    with edgellm.load(folder, context=4096) as llm:
        assert llm.generate([1, 2, 3], max_tokens=5, ignore_eos=True).finish_reason == "length"


def test_the_embedded_model_is_looked_for_in_the_package_and_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "site" / "edgellm"
    package.mkdir(parents=True)
    monkeypatch.setattr(embedded.edgellm, "__file__", str(package / "__init__.py"))
    with pytest.raises(edgellm.InputError, match="embedded model"):
        edgellm.inspect()
    for place in (tmp_path / "site" / "models" / "guide", package / "models" / "guide"):
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(b"")
        assert embedded.embedded_path() == str(place)
