"""Where the real data for local tests lies: beside the checkout, never in it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="needs the real tiny models that lie beside the project's checkout"
)
