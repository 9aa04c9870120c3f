"""Recipes: files and flags, what they refuse, and what makes two of them the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgellm.convert.recipe import make_recipe, read_recipe
from edgellm.errors import EdgeLLMError, UsageError


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"method": "magic"}, "method"),
        ({"bits": 5}, "bits"),
        ({"damp_percent": 0}, "damp_percent"),
        ({"sequences": True}, "sequences"),
        ({"average_bits": 1.0}, "average_bits"),
        ({"lm_head_bits": 3}, "lm_head_bits"),
        ({"true_sequential": 1}, "true_sequential"),
        ({"method": "awq", "average_bits": 4.5}, "method"),
        ({"method": "awq", "desc_act": True}, "method"),
        ({"overrides": {"a": {"colour": 1}}}, "overrides.a"),
        ({"overrides": {"a": {"bits": 7}}}, "bits"),
        ({"overrides": {"a": {"skip": 1}}}, "overrides.a.skip"),
        ({"what": 1}, "what"),
    ],
)
def test_a_refusal_names_the_setting(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_recipe(settings)
    assert caught.value.key == key


def test_flags_that_were_not_given_are_no_settings() -> None:
    recipe = make_recipe({"bits": None, "method": "awq"})
    assert (recipe.scheme.bits, recipe.scheme.sym) == (4, False)
    assert make_recipe({}).scheme.sym is True


def test_awq_is_written_as_gptq_where_its_own_files_hold_no_such_bits() -> None:
    assert make_recipe({"method": "awq"}).packing == "awq"
    assert make_recipe({"method": "awq", "bits": 3}).packing == "gptq"
    assert make_recipe({"method": "awq", "overrides": {"lm_head": {"bits": 8}}}).packing == "gptq"
    assert make_recipe({"method": "rtn"}).packing == "gptq"


def test_the_digest_is_of_what_changes_bytes() -> None:
    plain = make_recipe({}).digest()
    assert make_recipe({"max_ram": 10**9, "calibration": "x"}).digest() == plain
    for changed in ({"bits": 3}, {"overrides": {"a": {"bits": 8}}}, {"seed": 1}, {"shard_bytes": 1 << 21}):
        assert make_recipe(changed).digest() != plain


def test_recipes_from_files(tmp_path: Path) -> None:
    json_file = tmp_path / "recipe.json"
    json_file.write_text('{"bits": 3, "overrides": {"lm_head": {"skip": true}}}')
    assert read_recipe(json_file)["bits"] == 3
    toml_file = tmp_path / "recipe.toml"
    toml_file.write_text('bits = 3\n[overrides."model.layers.0.mlp.up_proj"]\nbits = 8\n')
    if sys.version_info >= (3, 11):
        assert make_recipe(read_recipe(toml_file)).overrides == {"model.layers.0.mlp.up_proj": {"bits": 8}}
        toml_file.write_text("bits = = 3")
        with pytest.raises(UsageError, match="not TOML"):
            read_recipe(toml_file)
    else:
        with pytest.raises(UsageError, match="tomli"):
            read_recipe(toml_file)
    with pytest.raises(EdgeLLMError):
        read_recipe(tmp_path / "missing.json")
