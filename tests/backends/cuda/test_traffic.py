"""What the kernels of a model move, counted on the emulator."""

from __future__ import annotations

from tests.golden_models import GOLDEN_FOLDER
from tools.cuda_traffic import traffic
from tools.ptx_emulator.report import table


def test_traffic_of_a_model(shipped_gpu) -> None:
    shipped_gpu()
    found = traffic(GOLDEN_FOLDER / "llama-mha", prompt=8, tokens=2, capability=80, lm_head="keep", dtype="float16")
    products = {name: counts for name, counts in found.items() if name.startswith("gemv_")}
    assert products
    for name, counts in products.items():
        assert counts.of("global", "load").efficiency > 0.5, name
        assert counts.touched["load"] > 0, name
    assert len(table(found)) == 1 + sum(counts.launches > 0 for counts in found.values())
