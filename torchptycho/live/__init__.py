"""Reconstruction while the scan is being recorded."""
