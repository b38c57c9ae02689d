"""Reconstruction while the scan is recorded."""

from torchptycho.live.replay import replay
from torchptycho.live.watcher import Watched, watch

__all__ = ["Watched", "replay", "watch"]
