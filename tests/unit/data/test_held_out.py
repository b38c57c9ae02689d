"""Photons or frames that are held out: independent of what is kept, and the same however they are read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.held_out import hold_out
from torchptycho.data.simulation import simulate
from torchptycho.io.frames.thinning import ThinnedFrames


def make_scan(frames: np.ndarray | None = None, **changes: object) -> Scan:
    scan = simulate(SimulateConfig(n_px=16, object_px=40, n_frames=30, photons_per_frame=1e4, probe_defocus_waves=1))
    return dataclasses.replace(scan, frames=scan.frames if frames is None else ArrayFrames(frames), **changes)


class TestPhotons:
    @pytest.mark.contract("held-out.photons")
    def test_kept_and_held_add_up_and_do_not_follow_each_other(self) -> None:
        expected = 20.0
        counts = np.random.default_rng(0).poisson(expected, (200, 16, 16)).astype(np.uint16)
        mask = np.ones((16, 16), bool)
        kept, held = (
            ThinnedFrames(ArrayFrames(counts), 0.75, 3, is_held, mask)[:].astype(float) for is_held in (False, True)
        )
        np.testing.assert_array_equal(kept + held, counts)
        n = counts.size
        for part, mean in ((kept, 0.75 * expected), (held, 0.25 * expected)):
            assert abs(part.mean() - mean) < 5 * (mean / n) ** 0.5
            assert part.var() == pytest.approx(mean, rel=0.05)
        assert abs(np.corrcoef(kept.ravel(), held.ravel())[0, 1]) < 5 / n**0.5

    @pytest.mark.contract("held-out.photons.stream")
    def test_a_frame_is_thinned_alike_however_it_is_read(self) -> None:
        parts = hold_out(make_scan(), seed=4)
        whole = parts.kept.frames[:]
        for size in (1, 7, 100):
            np.testing.assert_array_equal(np.concatenate(list(parts.kept.frames.chunks(size))), whole)
        np.testing.assert_array_equal(parts.kept.frames[np.array([5, 2])], whole[[5, 2]])
        assert whole.dtype == parts.kept.frames.dtype
        np.testing.assert_array_equal(hold_out(make_scan(), seed=4).kept.frames[:], whole)
        assert (hold_out(make_scan(), seed=5).kept.frames[:] != whole).any()

    @pytest.mark.contract("held-out.photons.model")
    def test_the_probe_and_the_model_follow_the_kept_photons(self) -> None:
        scan = make_scan()
        parts = hold_out(scan, kept_fraction=0.8)
        power = [float((np.abs(part.probe) ** 2).sum()) for part in (scan, parts.kept)]
        assert power[1] == pytest.approx(0.8 * power[0], rel=1e-5)
        light = [float(part.frames[:].sum()) for part in (parts.kept, parts.held)]
        assert light[1] == pytest.approx(parts.model_factor * light[0], rel=0.02)

    @pytest.mark.contract("held-out.photons.mask")
    def test_what_lies_under_the_mask_is_not_looked_at(self) -> None:
        frames = make_scan().frames[:].astype(np.float32)
        mask = np.ones((16, 16), bool)
        mask[3, 4] = False
        frames[:, 3, 4] = np.nan
        parts = hold_out(make_scan(frames, mask=mask))
        assert parts.how == "photons"
        assert not parts.held.frames[:][:, 3, 4].any()


class TestFrames:
    @pytest.mark.contract("held-out.frames")
    @pytest.mark.parametrize("kind", ["amplitude", "not whole"])
    def test_without_photons_to_draw_whole_frames_are_held_out(self, kind: str) -> None:
        frames = make_scan().frames[:].astype(np.float32)
        scan = make_scan(frames**0.5, domain="amplitude") if kind == "amplitude" else make_scan(frames * 0.7)
        parts = hold_out(scan, kept_fraction=0.8)
        assert (parts.how, parts.model_factor) == ("frames", 1.0)
        assert parts.kept.n_frames + parts.held.n_frames == scan.n_frames
        assert parts.held.n_frames == 6
        both = np.concatenate([parts.kept.positions_px, parts.held.positions_px])
        assert len(np.unique(both, axis=0)) == scan.n_frames
        # Evenly: each held frame has a kept one closer than two steps of the scan.
        gap = np.linalg.norm(parts.held.positions_px[:, None] - parts.kept.positions_px, axis=2).min(1)
        assert gap.max() < 8

    @pytest.mark.contract("held-out.refused")
    def test_photons_cannot_be_drawn_from_what_does_not_count_them(self) -> None:
        frames = make_scan().frames[:].astype(np.float32)
        with pytest.raises(ScanError, match=r"expected photon counts.*found amplitudes"):
            hold_out(make_scan(frames, domain="amplitude"), how="photons")
        frames[7, 2, 2] = 0.5
        parts = hold_out(make_scan(frames), how="photons")
        with pytest.raises(ScanError, match=r"whole numbers.*frame 7"):
            parts.kept.frames[:]
        few = make_scan(frames[:12], positions_px=make_scan().positions_px[:12], scan_id=np.zeros(12, np.int64))
        with pytest.raises(ScanError, match="expected 14 frames or more"):
            hold_out(few, how="frames")
