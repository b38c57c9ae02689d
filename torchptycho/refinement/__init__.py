"""Refinement: from nothing, or from a network's image, to the best one that the counts allow."""

from torchptycho.refinement.run import refine

__all__ = ["refine"]
