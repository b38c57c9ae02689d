"""Figures, reports and tables."""
