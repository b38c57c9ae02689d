"""The command that trains the prior."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torchptycho.cli.base import WritingCommand
from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ConfigError

__all__ = ["Pretrain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(WritingCommand):
    """Train the prior on simulated scans; no measured data are needed.

    torchptycho pretrain --out prior --minutes 120
    torchptycho pretrain --out prior --minutes 240 --resume
    torchptycho pretrain --out second --start prior/prior.safetensors --minutes 60
    torchptycho pretrain --out mine --probe-from scan.npz --minutes 20
    """

    out: Path
    """Folder for the simulated scans, the checkpoint and the weights, prior.safetensors."""
    probe_from: Path | None = None
    """Scan whose probe illuminates every simulated scan: the prior that comes with the package is adapted to it."""
    start: Path | None = None
    """Weights that are trained further, on scans that are refined with them. None: random ones, or those of the package
    with `probe_from`."""
    minutes: float = 120.0
    """Time to train for, over all sessions."""
    pairs: int = 2500
    """Scans that are simulated and refined, while training goes on."""
    workers: int = 1
    """Processes that simulate and refine, besides the one that trains."""
    seed: int = 20261129
    """Seed of everything that is drawn."""
    resume: bool = False
    """Continue the training in this folder."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)

    def run(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"--workers: expected 1 or more; found {self.workers}.")
        from torchptycho.io import read_scan
        from torchptycho.models.prior import load_prior
        from torchptycho.training.pretraining.module import PretrainingConfig
        from torchptycho.training.pretraining.pretrain import pretrain

        config = PretrainingConfig(minutes=self.minutes, pairs=self.pairs, seed=self.seed)
        probe = None if self.probe_from is None else read_scan(self.probe_from, self.reading).probe
        with self.show_status(f"training for {self.minutes:g} minutes"):
            weights = pretrain(
                self.out,
                config,
                probe=probe,
                start=self.start,
                workers=self.workers,
                resume=self.resume,
                overwrite=self.overwrite,
            )
        prior = load_prior(weights)
        names = ("step", "minutes", "pairs", "loss", "validation")
        result = {"weights": str(weights), "sha256": prior.sha256} | {name: prior.report[name] for name in names}
        self.print_result(
            result,
            f"{weights}: {result['step']} steps on {result['pairs']} scans; part of the error that is left on scans "
            f"that were not trained on: {result['validation']}",
            json=self.json,
        )
