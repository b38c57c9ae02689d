"""Stacks of diffraction patterns that stay in their files."""
