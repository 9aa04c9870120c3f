"""The reference backend: numpy, float32, one plain function an op. It is the definition that every other is held to."""

from edgellm.backends.reference.backend import ReferenceBackend

backend = ReferenceBackend()
