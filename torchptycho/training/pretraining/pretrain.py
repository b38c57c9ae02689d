"""From nothing to weights: other processes simulate and refine scans while the prior is trained on those made."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Complex64
from numpy import ndarray

from torchptycho.core.errors import ConfigError
from torchptycho.models.prior import load_prior
from torchptycho.models.prior.network import PriorConfig, PriorNetwork
from torchptycho.models.prior.weights import save_prior
from torchptycho.training.pretraining.module import PretrainingConfig
from torchptycho.training.pretraining.pairs import PairStore
from torchptycho.training.pretraining.training_loop import (
    PAIRS,
    START,
    check_output_folder,
    remove_training,
    train_prior,
)
from torchptycho.training.runtime import restore_keyboard_interrupt

__all__ = ["pretrain"]

# Training begins with this number of pairs.
_FIRST_PAIRS = 24


def pretrain(
    out: str | Path,
    config: PretrainingConfig = PretrainingConfig(),  # noqa: B008 -- frozen
    *,
    probe: Complex64[ndarray, "p n n"] | None = None,
    start: str | Path | None = None,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train a prior on simulated scans; given a probe or weights, train those or the shipped ones further.

    Weights that are trained further act in the refinement of most of the scans, so that the prior learns from the
    objects that it meets there.

    Arguments:
        out: folder for the pairs, the checkpoint and the weights.
        probe: modes that every scan is illuminated by; None draws many kinds of probes.
        start: weights that are trained further; None takes the shipped ones when there is a probe, else random ones.
            A copy of them is kept in `out`, and a resumed training goes on with it.
        workers: processes that simulate and refine, besides the one that trains.
        resume: go on in this folder.
        overwrite: replace a training in this folder.

    Returns:
        the file of weights, `prior.safetensors` in `out`.

    Raises:
        ConfigError: there is a training in `out` already, or none to resume, or one of another seed.
        StoreError: `start` holds no weights.
    """
    out = Path(out)
    if resume and overwrite:
        raise ConfigError("overwrite: expected to continue a training or to replace it; found both.")
    if overwrite:
        remove_training(out)
    check_output_folder(out, config.seed, resume=resume)
    network: PriorConfig | PriorNetwork = PriorConfig()
    weights = out / START
    if not resume and (start is not None or probe is not None):
        prior = load_prior(start)
        out.mkdir(parents=True, exist_ok=True)
        save_prior(prior.network, weights, prior.report)
    with_prior = weights.is_file()
    if with_prior:
        network = load_prior(weights).network
    store = PairStore(out / PAIRS, config.seed, probe, weights if with_prior else None)
    with _make_pairs(store, config.pairs, workers), restore_keyboard_interrupt():
        return train_prior(out, store, config, network, resume=resume)


@contextlib.contextmanager
def _make_pairs(store: PairStore, count: int, workers: int) -> Iterator[None]:
    """Make pairs in other processes until the block ends; the first ones are waited for."""
    missing = sorted(set(range(count)) - set(store.numbers()))
    # Threads of torch do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare_worker)
    try:
        coming: list[Future[Path]] = [pool.submit(store.add, number) for number in missing]
        for future in coming[: max(0, _FIRST_PAIRS - (count - len(missing)))]:
            future.result()
        yield
    finally:
        pool.shutdown(cancel_futures=True)
    for future in coming:
        if future.done() and not future.cancelled():
            future.result()


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    # Some of the probes are meant to be wide.
    logging.getLogger("torchptycho.data.simulation.simulator").setLevel(logging.ERROR)
