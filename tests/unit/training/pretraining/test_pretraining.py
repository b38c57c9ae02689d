"""Pairs, crops and training of the prior, on a few small scans."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from torchptycho.models.prior import PriorConfig, load_prior, save_prior
from torchptycho.training.pretraining.crops import CropDataset, cut_validation_crops
from torchptycho.training.pretraining.module import PretrainingConfig, measure_error_ratio
from torchptycho.training.pretraining.pairs import PairStore
from torchptycho.training.pretraining.training_loop import PROGRESS, train_prior

QUICK = PretrainingConfig(steps=4, minutes=5, seed=3, batch_size=2, crop_px=48)
SMALL = PriorConfig(widths=(8, 8), deepest_blocks=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Pairs 0 to 2 of a seed whose noise is worth training on."""
    probe = np.zeros((1, 32, 32), np.complex64)
    y, x = np.mgrid[:32, :32] - 16
    probe[0] = np.exp(-(y**2 + x**2) / 40 + 0.02j * (y**2 + x**2))
    store = PairStore(tmp_path_factory.mktemp("pairs"), 6, probe)
    for number in range(4):
        store.add(number)
    return store


@pytest.mark.contract("prior.pairs")
def test_a_pair_is_an_object_with_noise_and_the_same_without(store: PairStore) -> None:
    assert store.numbers() == [0, 1, 2, 3]
    assert len(store) == 4
    pair = store.load(1)
    assert pair.refined.shape == pair.truth.shape == pair.sigma.shape
    covered = pair.sigma < 2 * pair.sigma.min()
    overlap = np.vdot(pair.truth[covered], pair.refined[covered])
    assert abs(np.angle(overlap)) < 0.05
    assert abs(overlap) > 0.5 * np.linalg.norm(pair.truth[covered]) * np.linalg.norm(pair.refined[covered])


def test_a_pair_depends_on_seed_and_number_alone(store: PairStore, tmp_path: Path) -> None:
    other = PairStore(tmp_path, store.seed, store.probe)
    assert other.add(2).read_bytes() == store.path(2).read_bytes()


@pytest.mark.contract("prior.pairs.with-prior")
def test_given_weights_act_in_the_refinement_of_most_scans(store: PairStore, tmp_path: Path) -> None:
    weights = save_prior(load_prior().network, tmp_path / "start.safetensors", {})
    trained = PairStore(tmp_path / "pairs", store.seed, store.probe, weights)
    for number in range(4):
        trained.add(number)
    acted = [trained.load(number).drawn["with_prior"] for number in range(4)]
    assert 2 <= sum(acted) < 4
    for number in range(4):
        same = trained.path(number).read_bytes() == store.path(number).read_bytes()
        assert same == (not acted[number])
    crops, plain = (CropDataset(pairs, 1, batch_size=2, crop_px=40) for pairs in (trained, store))
    for each in (crops, plain):
        next(iter(each))
    assert set(crops._pairs) == {1, 2, 3}
    assert set(crops._noise) == {number for number in plain._noise if not acted[number]} != set(plain._noise)


@pytest.mark.contract("prior.crops")
def test_batches_depend_on_their_number_alone(store: PairStore) -> None:
    first = list(itertools.islice(CropDataset(store, 1, batch_size=2, crop_px=40), 4))
    later = next(iter(CropDataset(store, 1, batch_size=2, crop_px=40, start=3)))
    assert torch.equal(first[3].noisy, later.noisy)
    assert torch.equal(first[3].truth, later.truth)
    assert not torch.equal(first[2].truth, later.truth)
    for batch in first:
        assert batch.noisy.shape == batch.sigma.shape == (2, 40, 40)
        assert float(measure_error_ratio(batch.noisy, batch).max()) <= 1.01


def test_validation_pairs_are_not_trained_on(store: PairStore) -> None:
    crops = CropDataset(store, 1, batch_size=2, crop_px=40)
    next(iter(crops))
    assert 0 not in crops._pairs
    assert cut_validation_crops(store, crop_px=40) is not None


@pytest.mark.contract("prior.training")
def test_training_writes_weights_with_a_report_and_resumes(store: PairStore, tmp_path: Path) -> None:
    weights = train_prior(tmp_path / "whole", store, QUICK, SMALL)
    prior = load_prior(weights)
    assert prior.report["step"] == 4
    assert prior.report["training"]["seed"] == 3
    assert prior.report["versions"]["torch"]
    assert not set(prior.report["families"]) & set(prior.report["held_out_families"])

    part = dataclasses.replace(QUICK, steps=2)
    train_prior(tmp_path / "parts", store, part, SMALL)
    train_prior(tmp_path / "parts", store, QUICK, SMALL, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "parts" / PROGRESS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
