"""Reconstruction while the scan is recorded."""

from torchptycho.live.replay import replay
from torchptycho.live.watcher import WatchResult, watch

__all__ = ["WatchResult", "replay", "watch"]
