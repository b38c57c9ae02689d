"""Generators: diffraction of a group to its complex object patches."""

from torchptycho.nn.base import Generator, build_generator, find_generator

__all__ = ["Generator", "build_generator", "find_generator"]
