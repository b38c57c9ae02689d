"""Frames of a scan with another stack of recorded frames below their processing."""

from __future__ import annotations

import dataclasses

from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import CastFrames
from torchptycho.io.frames.processing import ProcessedFrames
from torchptycho.io.frames.views import PickedFrames

__all__ = ["replace_stack"]


def replace_stack(frames: Frames, stack: Frames) -> Frames:
    """Apply the processing of `frames` to another stack, such as the same dataset after it has grown."""
    if isinstance(frames, ProcessedFrames):
        return dataclasses.replace(frames, inner=replace_stack(frames.inner, stack))
    if isinstance(frames, CastFrames):
        return dataclasses.replace(frames, inner=replace_stack(frames.inner, stack))
    return replace_stack(frames.inner, stack) if isinstance(frames, PickedFrames) else stack
