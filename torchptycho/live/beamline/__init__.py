"""Detectors and position readers of beamlines, as sources of frames."""
