"""The quality table's own arithmetic: widened models are the same models, losses fall with bits, orders are judged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from edgellm.model import open_model  # noqa: E402
from tests.api.models import write_model  # noqa: E402
from tests.convert.converting import convert, golden, logits, tokens  # noqa: E402
from tools.quality.layers import hessians, losses  # noqa: E402
from tools.quality.sources import widen  # noqa: E402
from tools.quality_table import Outcome, Row, broken, table  # noqa: E402


def test_channels_of_zeros_change_no_logit(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", intermediate_size=40)
    before = logits(folder, tokens().token_ids)
    widen(folder)
    with open_model(folder) as model:
        assert model.config.intermediate_size == 64
    np.testing.assert_allclose(logits(folder, tokens().token_ids), before, rtol=1e-5, atol=1e-5)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    widen(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_losses_fall_with_bits_and_by_gptq(tmp_path: Path) -> None:
    source = golden("llama-mha")
    settings = {"four": {"method": "rtn"}, "eight": {"method": "rtn", "bits": 8}, "gptq": {"method": "gptq"}}
    found = {}
    with open_model(source) as before:
        sums = hessians(before, tokens().token_ids)
        for name, given in settings.items():
            convert(source, tmp_path / name, group_size=16, **given)
            with open_model(tmp_path / name) as after:
                found[name] = np.mean(list(losses(before, after, sums).values()))
    assert 0 < found["eight"] < found["gptq"] < found["four"] < 1


def rows(**nll: float) -> list[Row]:
    made = [Row("m", "source", 16, (Outcome(0, 1.0, 0.0, 0.0, 1.0, 0.0),))]
    for method, value in nll.items():
        outcomes = tuple(Outcome(seed, value + 0.01 * seed, 0.002, 0.1, 0.9, None) for seed in (0, 1))
        made.append(Row("m", method.replace("_", " ").replace("act order", "act-order"), 4, outcomes))
    return made


def test_orders() -> None:
    assert broken(rows(RTN=1.4, AWQ=1.3, GPTQ=1.2, GPTQ_act_order=1.1)) == []
    assert broken(rows(GPTQ=1.1, GPTQ_act_order=1.1)) == []
    faults = broken(rows(RTN=1.2, AWQ=1.2, GPTQ=1.1, GPTQ_act_order=0.9))
    assert [fault.split(":")[1] for fault in faults] == [
        " source is not below GPTQ act-order",
        " AWQ is not below RTN",
    ]
    assert "seeds spread by 0.01000, the text's standard error is 0.00200" in faults[1]


def test_the_table_names_the_range_over_seeds() -> None:
    text = table(rows(GPTQ=1.1))
    assert f"| {np.exp(1.105):.4f} | {np.exp(1.1):.4f} to {np.exp(1.11):.4f} | 0.10000 | 90.00% |  |" in text
    assert text.splitlines()[2].startswith("| m | 16 | source | 2.7183 |")


def test_both_numbers_of_a_row_are_means() -> None:
    (row,) = rows(GPTQ=1.1)[1:]
    assert row.mean("nll") == pytest.approx(1.105)
    assert row.spread("nll") == pytest.approx(0.01 / np.sqrt(2))
