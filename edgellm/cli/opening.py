"""Open a model's files without loading it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.model import OpenedModel


@contextlib.contextmanager
def open_named(path: str | None) -> Iterator[OpenedModel]:
    """The opened model of `find_model`'s answer, None being the embedded one; closed in the end."""
    from edgellm.api.embedded import embedded_path
    from edgellm.model import open_model

    opened = open_model(path if path is not None else embedded_path())
    try:
        yield opened
    finally:
        opened.close()
