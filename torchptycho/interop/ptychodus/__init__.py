"""Reconstructors for Ptychodus 1.7, on its own classes; `torchptycho ptychodus enable` has them listed there."""
