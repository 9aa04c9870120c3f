"""What an installed package holds: every folder of the package, and the embedded model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib reads pyproject.toml from Python 3.11 on")
def test_every_package_is_listed() -> None:
    import tomllib

    setup = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "edgellm").rglob("*.py")}
    elsewhere = setup["package-dir"]
    assert {".".join(folder.parts) for folder in folders} == set(setup["packages"]) - set(elsewhere)
    for folder in elsewhere.values():
        assert (REPOSITORY / folder / "config.json").is_file()
