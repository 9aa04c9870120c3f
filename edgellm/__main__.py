"""`python -m edgellm` is the command `edgellm`."""

from __future__ import annotations

from edgellm.cli.main import entry

if __name__ == "__main__":
    entry()
