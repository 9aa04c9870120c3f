"""Sequences on their way through a model: sampling, cache slots, scheduling, streaming, conversations."""
