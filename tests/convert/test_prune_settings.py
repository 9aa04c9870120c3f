"""[prune] of a recipe: shares and counts, what they are for a model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.convert.prune_budget import plan_pruning
from edgellm.convert.prune_settings import PruneSettings
from edgellm.convert.recipe import make_recipe, read_recipe
from edgellm.errors import EdgeLLMError, OutOfMemoryError, UsageError
from edgellm.model import open_model
from tests.api.models import write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("settings") / "source", intermediate_size=64, num_hidden_layers=3)


def test_shares_and_counts(source: Path) -> None:
    with open_model(source) as opened:
        config = opened.config
        shares = PruneSettings.of({"ffn": 0.5, "kv_groups": 0.5, "layers": [2, 0]}).recipe(config, 16)
        counts = PruneSettings.of({"ffn": 48, "kv_groups": 1, "layers": 2}).recipe(config, None)
    assert (shares.kept_width(64), shares.kept_groups(config), shares.layer_ids, shares.layers) == (32, 1, (2, 0), 0)
    assert (counts.kept_width(64), counts.kept_groups(config), counts.layer_ids, counts.layers) == (48, 1, (), 2)
    assert (counts.kept_width(40), counts.refit) == (40, "source")


def test_widths_are_multiples_of_the_groups_that_follow(source: Path) -> None:
    with open_model(source) as opened:
        found = [PruneSettings(ffn=0.2).recipe(opened.config, group) for group in (None, 16, 128)]
        given = PruneSettings(ffn=0.2, ffn_multiple=8).recipe(opened.config, 128)
    assert [recipe.ffn_multiple for recipe in (*found, given)] == [32, 32, 128, 8]
    assert found[2].kept_width(8192) == 6528
    assert given.kept_width(64) == 48


@pytest.mark.parametrize(
    "values",
    [
        {"ffn": 1.0}, {"ffn": -1}, {"ffn": True}, {"kv_groups": 1.5}, {"layers": 1.5}, {"layers": ["a"]},
        {"refit": "all"}, {"vocabulary": 3}, {"vocabulary": [""]}, {"unknown": 1}, {"ffn": 0}, {"measure": "guess"},
        {"ridge": 0},
        {"ffn_multiple": 0}, {"ffn_by_layer": 1}, {"sparsity": {"level": 1}}, 7,
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(values: object) -> None:
    with pytest.raises(UsageError, match="prune"):
        PruneSettings.of(values)


@pytest.mark.parametrize(
    "values", [{"kv_groups": 2}, {"ffn": 65}, {"layers": 3}, {"layers": [3]}, {"ffn": 0.5, "sparsity": {}}], ids=str
)
def test_what_a_model_does_not_have(values: dict, source: Path) -> None:
    with open_model(source) as opened, pytest.raises(UsageError, match="prune"):
        PruneSettings.of(values).recipe(opened.config, None)


def test_pruning_alone_unless_a_quantization_is_asked_for() -> None:
    assert make_recipe({}).prune is None
    assert make_recipe({"prune": False, "bits": 8}).prune is None
    assert make_recipe({"prune": True}).prune == PruneSettings(ffn=0.2)
    for settings in ({}, {"bits": 16}, {"sequences": 4}):
        assert not make_recipe({"prune": {"layers": 1}, **settings}).quantizes
    for settings in ({"bits": 4}, {"method": "rtn"}, {"group_size": 64}, {"sym": True}):
        assert make_recipe({"prune": {"layers": 1}, **settings}).quantizes
    with pytest.raises(UsageError, match="nothing would be pruned"):
        make_recipe({"bits": 16})
    with pytest.raises(UsageError, match="nothing is quantized"):
        make_recipe({"prune": True, "bits": 16, "average_bits": 4.0})


def test_a_file_says_it_too(tmp_path: Path) -> None:
    text = 'bits = 4\n[prune]\nffn = 0.25\nlayers = [1]\nvocabulary = ["a.txt"]\nsparsity = {pattern = [2, 4]}\n'
    (tmp_path / "recipe.json").write_text('{"prune": {"ffn": 0.25, "layers": [1], "refit": "layer"}}')
    found = make_recipe(read_recipe(tmp_path / "recipe.json")).prune
    assert (found.ffn, found.layers, found.refit) == (0.25, (1,), "layer")
    (tmp_path / "recipe.toml").write_text(text)
    try:
        values = read_recipe(tmp_path / "recipe.toml")
    except UsageError as error:
        assert "tomli" in str(error)  # noqa: PT017 (Python 3.10 without tomli)
        return
    found = make_recipe(values).prune
    assert (found.vocabulary, found.sparsity.pattern) == (("a.txt",), (2, 4))


def test_memory_is_planned(source: Path) -> None:
    with open_model(source) as opened:
        recipe = PruneSettings(ffn=0.5).recipe(opened.config, None)
        free = plan_pruning(opened, recipe, (4, 32), None, 10**6)
        assert free.peak_bytes == free.fixed_bytes + free.hidden_bytes
        assert free.hidden_bytes == 2 * 4 * 4 * 32 * 32
        tight = plan_pruning(opened, recipe, (4, 32), free.fixed_bytes, 10**6)
        assert tight.hidden_bytes == 0
        with pytest.raises(OutOfMemoryError, match="max_ram") as caught:
            plan_pruning(opened, recipe, (4, 32), free.fixed_bytes - 1, 10**6)
    assert isinstance(caught.value, EdgeLLMError)
