"""Scales: what the network sees, how many photons that stands for, and over which frames it is measured."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tolerances import relative_l2

from torchptycho import GroupDataset, Store, prepare
from torchptycho.core.config import GroupConfig, ModelConfig, PrepareConfig, RunConfig, SimulateConfig
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation import simulate
from torchptycho.interop import original_layouts
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.physics.scaling import Scaling, measure_scaling, to_intensity

oracle = pytest.importorskip("tf_reference", reason=MISSING)

N, M = 32, 20


@st.composite
def frame_stacks(draw: st.DrawFn, dtypes: tuple[str, ...] = ("f4", "f8", "u1", "u2", "i4")) -> np.ndarray:
    """(B, C, N, N) amplitudes of any brightness, most of whose squares are beyond the range of their integers."""
    gridsize, n_px, count = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(seeds))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = (count, gridsize**2, n_px, n_px)
    if dtype.kind == "f":
        return (rng.gamma(0.5, 10 ** draw(st.floats(-3, 3)), shape) + 1e-6).astype(dtype)
    return rng.integers(1, min(np.iinfo(dtype).max, 2**30), shape, dtype=dtype)


def measured(frames: np.ndarray, nphotons: float | None = None) -> Scaling:
    """The product's scaling of amplitudes, each frame once."""
    mean = float((frames.astype(np.float64) ** 2).sum(axis=(-2, -1)).mean())
    return measure_scaling(mean, frames.shape[-1], "amplitude", nphotons)


def network_input(frames: np.ndarray, scaling: Scaling) -> torch.Tensor:
    return to_intensity(torch.from_numpy(frames), "amplitude").sqrt() * np.float32(scaling.input_scale)


@pytest.mark.contract("parity.input-scale")
@given(frame_stacks())
def test_the_network_sees_the_same(frames: np.ndarray) -> None:
    expected = original_layouts.channels_first(
        oracle.normalize_data(original_layouts.channels_last(frames), frames.shape[-1])
    )
    assert_agree(network_input(frames, measured(frames)), expected, "parity.input-scale", "oracle_physics")


@pytest.mark.contract("parity.intensity-scale")
@given(frame_stacks(("f4", "u2")), st.floats(1, 12).map(lambda power: 10**power))
def test_the_scale_to_photons(frames: np.ndarray, nphotons: float) -> None:
    scaling, n_px = measured(frames, nphotons), frames.shape[-1]
    expected = oracle.calculate_intensity_scale(nphotons, n_px)
    assert_agree(np.array(scaling.intensity_scale), np.array(expected), "parity.intensity-scale", "oracle_double")
    seen = oracle.normalize_data(original_layouts.channels_last(frames), n_px)
    from_data = oracle.scale_nphotons(seen, nphotons)
    assert_agree(
        np.array(scaling.intensity_scale), np.array(from_data), "parity.intensity-scale.single", "oracle_physics"
    )


@pytest.mark.contract("parity.photon-counts")
@given(frame_stacks(("f4", "u2")), st.floats(1, 12).map(lambda power: 10**power))
def test_the_counts_that_a_model_is_held_against(frames: np.ndarray, nphotons: float) -> None:
    scaling = measured(frames, nphotons)
    counts = to_intensity(torch.from_numpy(frames), "amplitude") * np.float32(scaling.counts_per_intensity)
    seen = oracle.normalize_data(original_layouts.channels_last(frames), frames.shape[-1])
    rooted = seen * np.float32(oracle.calculate_intensity_scale(nphotons, frames.shape[-1]))
    assert_agree(counts, original_layouts.channels_first(rooted**2), "parity.photon-counts", "oracle_physics")
    assert_agree(counts.sum(dim=(-2, -1)), oracle.count_photons(rooted), "parity.photon-counts", "oracle_physics")


SCAN = simulate(SimulateConfig(n_px=N, object_px=72, n_frames=M, photons_per_frame=1e4))
AMPLITUDES = dataclasses.replace(
    SCAN,
    frames=ArrayFrames(np.sqrt(SCAN.frames[:].astype(np.float64)).astype(np.float32)),
    domain="amplitude",
    metadata={"nphotons": 3e6},
)


def stored(scan: Scan, folder: Path, val_fraction: float = 0.0, **group: Any) -> tuple[Store, PtychoPINN]:
    config = RunConfig(
        prepare=PrepareConfig(val_fraction=val_fraction),
        group=GroupConfig(**{"gridsize": 1, "neighbor_count": 7, "sampler": "oracle", **group}),
        model=ModelConfig(n_filters_scale=1),
    )
    store = prepare([scan], config, folder / "store")
    return store, PtychoPINN.for_store(store, config)


def grouped(scan: Scan, gridsize: int = 1, **options: Any) -> dict[str, Any]:
    y, x = scan.positions_px.T
    asked = {"K": 7, "nsamples": scan.n_frames, "seed": 0, **options}
    data: dict[str, Any] = oracle.generate_grouped_data(x, y, scan.frames[:], scan.n_px, gridsize, **asked)
    return data


def seen_by(module: PtychoPINN, batch: Any) -> torch.Tensor:
    """What the generator is given."""
    seen: list[torch.Tensor] = []
    handle = module.generator.register_forward_pre_hook(lambda _, given: seen.append(given[0].amplitude))
    with torch.no_grad():
        module(batch)
    handle.remove()
    return seen[0]


@pytest.mark.contract("parity.photon-counts")
@pytest.mark.contract("parity.input-scale")
def test_a_store_of_single_frames_is_the_container_of_the_oracle(tmp_path: Path) -> None:
    store, module = stored(AMPLITUDES, tmp_path)
    batch = GroupDataset(store, "train").__getitems__(range(M))
    container = oracle.load(grouped(AMPLITUDES), SCAN.probe[0], nphotons=3e6)
    scale = store.scans[0].scaling.intensity_scale
    assert_agree(np.array(scale), np.array(container.norm_Y_I), "parity.intensity-scale.single", "oracle_physics")
    expected = original_layouts.channels_first(container.X.numpy())
    assert_agree(seen_by(module, batch), expected, "parity.input-scale", "oracle_physics")
    _, _, counts = oracle.prepare_outputs(container, scale)
    assert_agree(
        module.compute_measured_counts(batch),
        original_layouts.channels_first(counts),
        "parity.photon-counts",
        "oracle_physics",
    )


@pytest.mark.contract("deviation.input-scale-of-groups")
def test_statistics_are_of_training_frames_here_and_of_all_groups_there(tmp_path: Path) -> None:
    """One bright frame held out: it changes nothing here. There each frame counts as often as groups hold it."""
    frames = AMPLITUDES.frames[:].copy()
    plain, _ = stored(AMPLITUDES, tmp_path / "plain", val_fraction=0.3)
    held_out = np.setdiff1d(np.arange(M), plain.groups("train").frames_used)[-1]
    frames[held_out] *= 30
    bright = dataclasses.replace(AMPLITUDES, frames=ArrayFrames(frames))
    store, _ = stored(bright, tmp_path / "bright", val_fraction=0.3)
    assert store.scans[0].scaling.input_scale == plain.scans[0].scaling.input_scale

    before, after = (
        oracle.load(grouped(scan), scan.probe[0], which="train", create_split=True, train_frac=held_out / M)
        for scan in (AMPLITUDES, bright)
    )
    assert len(after) > 0
    assert held_out not in after.nn_indices
    assert after.X.numpy().max() < 0.5 * before.X.numpy().max()


@pytest.mark.contract("deviation.input-scale-of-groups")
def test_a_frame_counts_once_here_and_as_often_as_groups_hold_it_there(tmp_path: Path) -> None:
    frames = AMPLITUDES.frames[:].copy()
    times = np.bincount(grouped(AMPLITUDES, gridsize=2)["nn_indices"].ravel(), minlength=M)
    often = int(times.argmax())
    frames[often] *= 30
    bright = dataclasses.replace(AMPLITUDES, frames=ArrayFrames(frames))
    groups = grouped(bright, gridsize=2)
    power = (frames.astype(np.float64) ** 2).sum(axis=(1, 2))
    theirs = float(groups["X_full"].max() / groups["diffraction"].max())
    ours = stored(bright, tmp_path, gridsize=2)[0].scans[0].scaling.input_scale
    assert times.sum() == 4 * M
    assert times[often] >= 6
    assert theirs == pytest.approx(N / 2 / math.sqrt((times * power).sum() / times.sum()), rel=1e-5)
    assert ours == pytest.approx(N / 2 / math.sqrt(power.mean()), rel=1e-12)
    assert theirs < 0.9 * ours


@pytest.mark.contract("deviation.split-shares-frames")
def test_no_frame_is_on_both_sides_of_a_split_here(tmp_path: Path) -> None:
    groups = grouped(AMPLITUDES, gridsize=2)
    train, test = (
        oracle.load(groups, SCAN.probe[0], which=which, create_split=True, train_frac=0.7)
        for which in ("train", "test")
    )
    assert set(train.nn_indices.flat) & set(test.nn_indices.flat)
    store, _ = stored(AMPLITUDES, tmp_path, val_fraction=0.3, gridsize=2)
    training, validation = store.groups("train"), store.groups("val")
    assert len(validation) > 0
    assert not set(training.members.flat) & set(validation.members[:, 0])


@pytest.mark.contract("deviation.integers-are-counts")
@given(frame_stacks(("u1", "u2", "i4")))
def test_integers_are_counts_here_and_amplitudes_there(frames: np.ndarray) -> None:
    """What the network sees grows with the root of an integer here, with the integer there."""
    mean = float(frames.astype(np.float64).sum(axis=(-2, -1)).mean())
    scaling = measure_scaling(mean, frames.shape[-1], "counts")
    ours = to_intensity(torch.from_numpy(frames), "counts").sqrt() * np.float32(scaling.input_scale)
    theirs = oracle.normalize_data(original_layouts.channels_last(frames), frames.shape[-1])
    told = oracle.normalize_data(original_layouts.channels_last(np.sqrt(frames.astype(np.float64))), frames.shape[-1])
    assert_agree(ours, original_layouts.channels_first(told), "parity.input-scale", "oracle_physics")
    ratio = original_layouts.channels_first(theirs) / frames
    assert np.ptp(ratio) <= 1e-6 * ratio.max()


@pytest.mark.contract("deviation.dose-is-measured")
@given(seeds, st.floats(1, 6).map(lambda power: 10**power))
def test_photons_are_counted_here_and_supposed_there(seed: int, photons: float) -> None:
    """With the oracle's default every scan has 1e9 photons a frame, whatever the detector counted."""
    frames = np.random.default_rng(seed).poisson(photons / N**2, (3, 1, N, N)).astype(np.int32)
    frames[..., 0, 0] += 1
    mean = float(frames.sum(axis=(-2, -1)).mean())
    scaling = measure_scaling(mean, N, "counts")
    seen = network_input(np.sqrt(frames.astype(np.float64)), dataclasses.replace(scaling, domain="amplitude"))
    counts = (seen * np.float32(scaling.intensity_scale)).square()
    assert relative_l2(counts, torch.from_numpy(frames)) <= 1e-5
    coords = np.zeros((3, 1, 2, 1))
    dataset = {
        "X_full": oracle.normalize_data(original_layouts.channels_last(np.sqrt(frames.astype(np.float64))), N),
        "Y": None,
        "coords_relative": coords,
        "coords_offsets": coords,
        "nn_indices": np.arange(3)[:, None],
        "objectGuess": None,
    }
    container = oracle.load(dataset, np.ones((N, N), np.complex64))
    supposed = oracle.prepare_outputs(container, container.norm_Y_I)[2].sum(axis=(1, 2)).mean()
    assert supposed == pytest.approx(1e9, rel=1e-5)


@pytest.mark.contract("deviation.detector-mask")
def test_a_hot_pixel_can_be_masked_here_and_dims_all_there(tmp_path: Path) -> None:
    frames, mask = AMPLITUDES.frames[:].copy(), SCAN.mask.copy()
    frames[:, 3, 5], mask[3, 5] = 1e4, False
    hot = dataclasses.replace(AMPLITUDES, frames=ArrayFrames(frames), mask=mask)
    cold = dataclasses.replace(AMPLITUDES, mask=mask)
    scales = [stored(scan, tmp_path / name)[0].scans[0].scaling.input_scale for name, scan in (("h", hot), ("c", cold))]
    assert scales[0] == scales[1]
    dimmed, plain = (grouped(scan)["X_full"][:, mask].max() for scan in (hot, cold))
    assert dimmed < 0.05 * plain
