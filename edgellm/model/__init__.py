"""Config, architecture table, weights by name and the program: what a model is, without arithmetic."""

from edgellm.model.config import ModelConfig, read_config
from edgellm.model.fusion import fuse
from edgellm.model.generation import GenerationDefaults
from edgellm.model.opened import OpenedModel, open_model
from edgellm.model.program import Op, Program, build_program
from edgellm.model.weights import Weights

__all__ = [
    "GenerationDefaults",
    "ModelConfig",
    "Op",
    "OpenedModel",
    "Program",
    "Weights",
    "build_program",
    "fuse",
    "open_model",
    "read_config",
]
