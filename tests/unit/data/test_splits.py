"""What is held out: frames, regions, scans; and that nothing near a region is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_asymmetric_probe, seeds

from torchptycho.core.config import GroupConfig, PrepareConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, GroupingError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.data.splits import choose_held_out_scans, probe_width_px, split_frames
from torchptycho.data.store import Store

N = 32


def scan_at(positions_px: np.ndarray) -> Scan:
    """A scan without light: only its places matter."""
    m = len(positions_px)
    return Scan(
        frames=ArrayFrames(np.zeros((m, N, N), np.uint8)),
        domain="counts",
        positions_px=positions_px,
        probe=np.ones((1, N, N), np.complex64),
        mask=np.ones((N, N), bool),
        scan_id=np.zeros(m, np.int64),
        geometry=Geometry(),
    )


def config(gridsize: int = 1, **options: Any) -> RunConfig:
    return RunConfig(prepare=PrepareConfig(**({"val_by": "region"} | options)), group=GroupConfig(gridsize=gridsize))


SCAN = simulate(SimulateConfig(n_px=N, object_px=120, n_frames=150, position_kind="fermat"))


class TestRegion:
    @pytest.mark.contract("data.split.region")
    @settings(max_examples=40, deadline=None)
    @given(
        seed=seeds,
        count=st.integers(30, 80),
        fraction=st.floats(0.05, 0.5),
        gap_px=st.floats(0, 12),
        split_seed=st.integers(0, 99),
        square=st.booleans(),
    )
    def test_no_frame_is_trained_on_within_the_gap_of_a_held_out_one(
        self, seed: int, count: int, fraction: float, gap_px: float, split_seed: int, square: bool
    ) -> None:
        places = np.random.default_rng(seed).uniform(0, (60, 60 if square else 20), (count, 2))
        options = config(val_fraction=fraction, val_gap_px=gap_px, split_seed=split_seed)
        try:
            split = split_frames([scan_at(places)], [False], options)
        except GroupingError:  # the gap leaves too little, which is tested below
            return
        assert len(split.held_out) == round(fraction * count)
        apart = np.linalg.norm(places[split.training][:, None] - places[split.held_out][None], axis=-1)
        assert apart.min(initial=np.inf) >= gap_px
        # And nothing more is given up than has to be.
        unused = np.setdiff1d(np.arange(count), np.concatenate([split.training, split.held_out]))
        near = np.linalg.norm(places[unused][:, None] - places[split.held_out][None], axis=-1).min(axis=1)
        assert (near < gap_px).all()
        assert len(np.intersect1d(split.training, split.held_out)) == 0

    @pytest.mark.contract("data.split.region")
    def test_region_is_one_part_of_the_scan(self) -> None:
        split = split_frames([SCAN], [False], config(val_fraction=0.2, val_gap_px=0.0))
        inside, outside = SCAN.positions_px[split.held_out], SCAN.positions_px[split.training]
        # A straight line divides them: some direction in which all held-out frames lie beyond all others.
        angles = np.linspace(0, 2 * np.pi, 721)
        along = np.stack([np.sin(angles), np.cos(angles)])
        assert ((inside @ along).min(axis=0) > (outside @ along).max(axis=0) - 0.5).any()

    @pytest.mark.contract("data.split.region")
    @pytest.mark.parametrize("gridsize", [1, 2])
    def test_groups_of_either_side_have_no_frame_of_the_border_or_of_the_other_side(
        self, tmp_path: Path, gridsize: int
    ) -> None:
        store = prepare(SCAN, config(gridsize, val_fraction=0.3), tmp_path / "store")
        gap_px = probe_width_px(SCAN.probe)
        assert 10 < gap_px < 25
        train, val = (np.unique(store.groups(split).members) for split in ("train", "val"))
        assert len(val) > 30
        apart = np.linalg.norm(SCAN.positions_px[train][:, None] - SCAN.positions_px[val][None], axis=-1)
        assert apart.min() >= gap_px
        frames = SCAN.frames[:].astype(np.float64)
        assert store.scans[0].scaling.photons_per_frame == pytest.approx(frames[train].sum((1, 2)).mean(), rel=1e-12)

    @pytest.mark.contract("data.split.region.given")
    def test_given_region_is_held_out(self) -> None:
        low, extent = SCAN.positions_px.min(axis=0), np.ptp(SCAN.positions_px, axis=0)
        split = split_frames([SCAN], [False], config(val_region=(0.0, 0.5, 0.25, 1.0), val_gap_px=5.0))
        part = (SCAN.positions_px - low) / extent
        inside = (part[:, 0] <= 0.5) & (part[:, 1] >= 0.25)
        np.testing.assert_array_equal(split.held_out, np.flatnonzero(inside))

    @pytest.mark.contract("data.split.region.given")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"val_region": (0.0, 1e-9, 0.0, 1e-9)}, r"val_region \(.*contains no frame. Widen it"),
            ({"val_region": (0.0, 1.0, 0.0, 1.0)}, "150 frames are held out as a region and 0 lie within"),
            ({"val_fraction": 0.1, "val_gap_px": 500.0}, "15 frames are held out.*135 lie within 500 px.*0 are left"),
        ],
    )
    def test_region_that_leaves_nothing_is_an_error_that_names_the_scan(
        self, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(GroupingError, match=rf"simulate\(.*{message}"):
            split_frames([SCAN], [False], config(**options))

    @pytest.mark.contract("data.split.options")
    @pytest.mark.parametrize("options", [{"val_region": (0.0, 0.5, 0.0, 1.0)}, {"val_gap_px": 3.0}])
    def test_options_of_a_region_are_refused_without_one(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="expected val_by region; found val_by frames"):
            PrepareConfig(**options)
        with pytest.raises(ConfigError, match=r"val_region: expected start < stop"):
            PrepareConfig(val_by="region", val_region=(0.5, 0.2, 0.0, 1.0))

    @pytest.mark.contract("data.split.width")
    def test_width_of_a_beam_holds_its_power_wherever_it_is(self) -> None:
        where = np.hypot(*(np.indices((64, 64)) - 40))
        disc = (where < 10).astype(np.complex64)[None]
        # 95 % of a disc's power lie within sqrt(0.95) of its radius.
        assert probe_width_px(disc) == pytest.approx(2 * 10 * np.sqrt(0.95), abs=0.6)
        assert probe_width_px(np.roll(disc, -17, axis=2)) == pytest.approx(probe_width_px(disc))
        two = make_asymmetric_probe(64, modes=2).numpy().astype(np.complex64)
        assert probe_width_px(two) > probe_width_px(two[:1])


class TestStable:
    @pytest.mark.contract("data.split.stable")
    @pytest.mark.parametrize("val_by", ["frames", "region"])
    def test_what_is_held_out_of_a_scan_does_not_depend_on_the_others(self, val_by: str) -> None:
        rng = np.random.default_rng(0)
        scans = [scan_at(rng.uniform(0, 60, (count, 2))) for count in (40, 55, 40)]
        options = config(val_by=val_by, val_fraction=0.2, val_gap_px=4.0 if val_by == "region" else None)
        starts = np.cumsum([0, 40, 55, 40])
        together = split_frames(scans, [False] * 3, options)
        for index, scan in enumerate(scans):
            alone = split_frames([scan], [False], options)
            for part in ("training", "held_out"):
                every = getattr(together, part)
                mine = every[(every >= starts[index]) & (every < starts[index + 1])] - starts[index]
                np.testing.assert_array_equal(mine, getattr(alone, part))


class TestScans:
    @pytest.mark.contract("data.split.scans")
    @pytest.mark.parametrize(("fraction", "count"), [(0.05, 1), (0.5, 2), (0.9, 3), (0.0, 0)])
    def test_whole_scans_are_drawn(self, fraction: float, count: int) -> None:
        drawn = {
            tuple(choose_held_out_scans(4, 0, PrepareConfig(val_by="scans", val_fraction=fraction, split_seed=seed)))
            for seed in range(12)
        }
        assert {sum(flags) for flags in drawn} == {count}
        assert len(drawn) > 1 or count == 0

    @pytest.mark.contract("data.split.scans")
    def test_given_scans_are_held_out_and_no_frame_of_the_others(self, tmp_path: Path) -> None:
        others = [dataclasses.replace(SCAN, source=f"scan {i}") for i in range(2)]
        store = prepare(SCAN, config(val_by="scans"), tmp_path / "given", val_scans=others[0])
        assert [entry.held_out for entry in store.scans] == [False, True]
        assert held_out_frames(store) == set(range(150, 300))
        store = prepare([SCAN, *others], config(val_by="scans", split_seed=3), tmp_path / "drawn")
        (index,) = [index for index, entry in enumerate(store.scans) if entry.held_out]
        assert held_out_frames(store) == set(range(150 * index, 150 * index + 150))
        assert set(store.groups("train").members[:, 0] // 150) == {0, 1, 2} - {index}

    @pytest.mark.contract("data.split.scans")
    def test_one_scan_has_none_to_hold_out(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="val_by scans: expected at least 2 scans"):
            prepare(SCAN, config(val_by="scans"), tmp_path / "store")
        assert not list(tmp_path.iterdir())


def held_out_frames(store: Store) -> set[int]:
    return set(store.groups("val").members[:, 0].tolist())
