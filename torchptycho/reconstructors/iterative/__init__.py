"""Refinement: from nothing, or from a network's image, to the best one that the counts allow."""

from torchptycho.reconstructors.iterative.job import refine
from torchptycho.reconstructors.iterative.judgement import summarize_fit
from torchptycho.reconstructors.iterative.uncertainty import estimate_uncertainty

__all__ = ["estimate_uncertainty", "refine", "summarize_fit"]
