"""One trial of a search: a brief refinement of a neighbourhood, judged by photons that were held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torchptycho.core.config import RefineConfig, to_dict
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.data.held_out import HeldOut
from torchptycho.reconstructors.diagnosis.likelihood import Judgement, judge
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.tuning.parameters import Value, apply_to_options, apply_to_scan

__all__ = ["OnPart", "TrialRunner", "compute_value"]

OnPart = Callable[[int, float], None]

# Parts of a trial after each of which it may be given up.
_PARTS = 3


def compute_value(judgement: Judgement) -> float:
    """Compute the log-likelihood of a held-out photon above that under the mean pattern."""
    return float(judgement.log_ratio.sum()) / max(judgement.counts, 1.0)


class TrialRunner:
    """Refines one neighbourhood with the values of parameters.

    Arguments:
        parts: its counts, held out and kept.
        config: of the refinement that is tuned.
        epochs: of a trial.
        device: on which it runs.
    """

    def __init__(self, parts: HeldOut, config: RefineConfig, epochs: int, device: str) -> None:
        self._parts, self._device = parts, device
        self.epochs = epochs
        brief = {
            "epochs": epochs,
            "patience": None,
            "position_start_epoch": min(config.position_start_epoch, epochs // 4),
            "opr_start_epoch": min(config.opr_start_epoch, epochs // 4),
        }
        self._options = to_dict(config.without_prior()) | brief

    def run(self, values: Mapping[str, Value], on_part: OnPart | None = None) -> Judgement:
        """Run a trial.

        Arguments:
            values: of the parameters.
            on_part: called with the epoch and the likelihood so far, twice; it may raise to end the trial.

        Raises:
            TorchptychoError: the refinement is impossible with these values.
            FloatingPointError: it diverges.
            KeyboardInterrupt: it was interrupted.
        """
        every = max(1, math.ceil(self.epochs / _PARTS))
        epoch = 0

        def show(image: Reconstruction) -> None:
            nonlocal epoch
            epoch += every
            if on_part is not None:
                on_part(epoch, compute_value(self._judge(image)))

        return self._judge(self._refine(values, show if on_part else None, every))

    def _refine(
        self,
        values: Mapping[str, Value],
        show: Callable[[Reconstruction], None] | None,
        every: int,
    ) -> Reconstruction:
        image = refine(
            apply_to_scan(self._parts.kept, values),
            config=apply_to_options(self._options, values),
            device=self._device,
            on_image=show,
            image_every_epochs=every,
            judge=False,
        )
        # An interrupted refinement returns what it has.
        if not image.provenance["complete"]:
            raise KeyboardInterrupt
        return image

    def _judge(self, image: Reconstruction) -> Judgement:
        return judge(image, self._parts.held, self._parts.model_factor)
