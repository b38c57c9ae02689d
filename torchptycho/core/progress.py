"""Progress bars, on standard error and only where that is a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["EpochProgress", "create_progress_bar"]


def create_progress_bar() -> Progress:
    """Create a progress bar on standard error, visible only where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class EpochProgress:
    """Shows how far a refinement is: a context, and inside it what `refine(on_epoch=...)` is given."""

    def __init__(self, what: str, epochs: int) -> None:
        self._bar = create_progress_bar()
        self._task = self._bar.add_task(what, total=epochs, note="")

    def __enter__(self) -> EpochProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, epoch: int, misfit: float) -> None:
        self._bar.update(self._task, completed=epoch, note=f"misfit {misfit:.4g}")
