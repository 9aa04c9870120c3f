"""The comparison of quantizers: edgellm's own lines, a tool that fails, and names that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.convert.converting import golden, tokens
from tools import compare_quantizers
from tools.compare_quantizers import Settings, compare, judge

SETTINGS = Settings(bits=4, group_size=16, sym=True, desc_act=False, damp_percent=0.01)


def test_each_quantizer_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such device")

    own = [item for item in compare_quantizers.quantizers(SETTINGS) if item[0].startswith("edgellm")]
    monkeypatch.setattr(compare_quantizers, "quantizers", lambda _: [*own, ("other tool", broken), ("third", broken)])
    ids = tokens().token_ids
    lines = compare(golden("llama-mha"), ids, ids, SETTINGS, without=["third"])
    assert [line["name"] for line in lines] == ["edgellm gptq", "edgellm gptq, mse grids", "edgellm rtn"]
    assert lines[0]["kl"] < lines[2]["kl"]
    assert all(line["bits"] == 4 and np.isfinite(line["perplexity"]) for line in lines)
    printed = capsys.readouterr().out
    assert "other tool                       failed: RuntimeError: no such device" in printed
    assert "third" not in printed
    assert "(+0.00%)" in printed


def test_a_model_is_no_different_from_itself() -> None:
    source = golden("llama-mha")
    found = judge(source, source, tokens(3).token_ids)
    assert found["perplexity"] == pytest.approx(found["source_perplexity"], rel=1e-9)
    assert found["kl"] == pytest.approx(0, abs=1e-9)
    assert found["top1"] == 1
