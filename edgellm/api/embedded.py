"""Where the model that comes with the package lies."""

from __future__ import annotations

from pathlib import Path

import edgellm
from edgellm.errors import InputError

NAME = "guide"


def embedded_path() -> str:
    """The folder of the embedded model: in the installed package, or in the checkout beside it.

    Raises:
        InputError: this installation came without it.
    """
    package = Path(edgellm.__file__).parent
    places = [package / "models" / NAME, package.parent / "models" / NAME]
    for place in places:
        if any(place.glob("*.safetensors")):
            return str(place)
    raise InputError("the embedded model is not in this installation", file=places[0], hint="Name a model's path.")
