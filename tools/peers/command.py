"""The command line that the writers of the peers' models share."""

from __future__ import annotations

import argparse
from pathlib import Path


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser for the folder of a checkpoint, and for what is written of it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    parser.add_argument("out", type=Path, help="what is written")
    return parser
