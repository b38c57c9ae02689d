"""Generators: diffraction of a group to its complex object patches."""

from torchptycho.models.generators.generator import (
    Generator,
    GroupInput,
    build_generator,
    find_generator,
    require_trusted_generator,
)

__all__ = ["Generator", "GroupInput", "build_generator", "find_generator", "require_trusted_generator"]
