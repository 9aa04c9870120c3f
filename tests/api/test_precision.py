"""What is stored and computed in how many bits: one path from the API and the command line to a backend's options."""

from __future__ import annotations

import json

import pytest

import edgellm
from edgellm.backends import find, options_for
from edgellm.cli import options
from edgellm.cli.main import main
from edgellm.errors import UsageError
from tests.api.models import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("precision") / "model", hidden_size=64)


def test_options_are_those_that_the_backend_declares() -> None:
    cpu, reference = find("cpu"), find("reference")
    assert options_for(cpu, {"lm_head": None, "activations": "int8"}) == {"activations": "int8"}
    assert options_for(reference, {"lm_head": None, "activations": None}) == {}
    assert dict(cpu.options) == {"lm_head": options.LM_HEADS, "activations": options.ACTIVATIONS}
    with pytest.raises(UsageError, match=r"lm_head: backend reference has no such option"):
        options_for(reference, {"lm_head": "int8"})
    with pytest.raises(UsageError, match=r"activations: no such choice.*auto, int8, int16"):
        options_for(cpu, {"activations": "int4"})


@pytest.mark.parametrize(("head", "stored"), [(None, "int8"), ("int4", "int4"), ("keep", "float16")])
def test_a_loaded_model_and_its_estimate_say_what_the_head_is(folder, head: str | None, stored: str) -> None:
    estimate = edgellm.estimate(folder, backend="cpu", lm_head=head)
    with edgellm.load(folder, backend="cpu", lm_head=head, activations="int16", threads=1) as llm:
        assert (llm.info["lm_head"], llm.info["activations"]) == (stored, "int16")
        assert llm.info["lm_head_bytes"] == estimate.lm_head_bytes > 0
        assert llm.generate([1, 2, 3], max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    assert estimate.lm_head == stored


@pytest.mark.parametrize("call", [edgellm.load, edgellm.estimate])
def test_bad_choices_are_named_before_anything_is_loaded(folder, call) -> None:
    with pytest.raises(UsageError, match="lm_head"):
        call(folder, backend="cpu", lm_head="int2")
    with pytest.raises(UsageError, match="activations: not a text"):
        call(folder, backend="cpu", activations=8)
    with pytest.raises(UsageError, match="reference has no such option"):
        call(folder, backend="reference", activations="int8")


def test_fit_takes_and_names_them(folder, capsys) -> None:
    assert main(["fit", str(folder), "--backend", "cpu", "--lm-head", "int4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lm_head"] == "int4"
    assert main(["fit", str(folder), "--backend", "cpu"]) == 0
    assert "(lm_head int8, " in capsys.readouterr().out
