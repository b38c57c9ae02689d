"""The spool on the disk."""

from __future__ import annotations

import dataclasses
import itertools
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunks import LAYOUT, N, chunk
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.errors import StoreError, TorchptychoError
from torchptycho.core.geometry import Geometry
from torchptycho.live.spool import Spool


class TestSpool:
    @pytest.mark.contract("live.spool.whole")
    @given(frames_left=st.integers(0, 20 * 32), positions_left=st.integers(0, 20 * 16))
    def test_cut_at_any_byte_it_holds_whole_frames_and_goes_on(
        self, tmp_path_factory: pytest.TempPathFactory, frames_left: int, positions_left: int
    ) -> None:
        folder = tmp_path_factory.mktemp("spool") / "spool"
        spool = Spool.create(folder, LAYOUT, "here")
        spool.append(chunk(20))
        spool.close()
        for name, left in (("frames.raw", frames_left), ("positions.raw", positions_left)):
            with (folder / name).open("rb+") as file:
                file.truncate(left)
        again = Spool.open_existing(folder)
        assert again is not None
        assert again.count == min(frames_left // 32, positions_left // 16)
        again.append(chunk(20 - again.count, first=again.count))
        frames, positions_px = again.read_rows(0, 20)
        np.testing.assert_array_equal(frames, chunk(20).frames)
        np.testing.assert_array_equal(positions_px, chunk(20).positions_px)
        again.close()

    @pytest.mark.contract("live.spool.other")
    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"scan": "b"}, "'scan'"),
            ({"domain": "amplitude"}, "'domain'"),
            ({"n_px": 8}, "'n_px'"),
            ({"dtype": np.dtype("<u4")}, "'dtype'"),
            ({"geometry": Geometry(distance_m=2.0)}, "'geometry'"),
            ({"mask": np.eye(N, dtype=bool)}, "'mask'"),
            ({"photons_per_frame": 5.0}, "'photons_per_frame'"),
        ],
    )
    def test_frames_of_another_scan_are_refused_by_name(
        self, tmp_path: Path, changes: dict[str, Any], name: str
    ) -> None:
        spool = Spool.create(tmp_path / "spool", LAYOUT, "here")
        spool.require_same_scan(dataclasses.replace(LAYOUT, total=None), "here")
        with pytest.raises(StoreError, match=name):
            spool.require_same_scan(dataclasses.replace(LAYOUT, **changes), "here")
        with pytest.raises(StoreError, match="'source'"):
            spool.require_same_scan(None, "there")
        spool.require_same_scan(LAYOUT, "there")
        spool.require_same_scan(None, "there")
        with pytest.raises(StoreError, match="expected no spool"):
            Spool.create(tmp_path / "spool", LAYOUT, "here")
        spool.close()

    @pytest.mark.contract("live.spool.full")
    def test_a_full_disk_is_told_before_and_after_and_leaves_whole_frames(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = Spool.create(tmp_path / "spool", LAYOUT, "here")
        spool.append(chunk(3))
        with monkeypatch.context() as patch:
            usage = type("Usage", (), {"free": 1000})
            patch.setattr("torchptycho.live.spool.shutil.disk_usage", lambda _: usage)
            with pytest.raises(StoreError, match=r"found 1000\. Free some: the 3 frames"):
                spool.append(chunk(2, first=3))
        # The system refuses in the middle of a frame.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 4 + 7, hard))
        try:
            with pytest.raises(StoreError, match="expected room for 96 bytes"):
                spool.append(chunk(2, first=3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (spool.count, (tmp_path / "spool" / "frames.raw").stat().st_size) == (3, 3 * 32)
        spool.append(chunk(2, first=3))
        np.testing.assert_array_equal(spool.read_rows(0, 5)[0], chunk(5).frames)
        spool.close()

    @given(start=st.integers(0, 8), count=st.integers(0, 8))
    def test_any_rows_are_read_from_where_they_lie(
        self, tmp_path_factory: pytest.TempPathFactory, start: int, count: int
    ) -> None:
        spool = Spool.create(tmp_path_factory.mktemp("spool") / "spool", LAYOUT, "here")
        spool.append(chunk(8))
        stop = min(start + count, 8)
        frames, positions_px = spool.read_rows(start, stop)
        np.testing.assert_array_equal(frames, chunk(8).frames[start:stop])
        np.testing.assert_array_equal(positions_px, chunk(8).positions_px[start:stop])
        spool.close()

    @pytest.mark.contract("live.spool.scan")
    def test_frames_that_arrive_while_a_scan_is_made_are_not_in_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = Spool.create(tmp_path / "spool", LAYOUT, "here")
        spool.append(chunk(6))
        counts = itertools.count(4)
        # Another thread appends between any two looks at the count.
        monkeypatch.setattr(Spool, "count", property(lambda _: next(counts)), raising=False)
        scan = spool.make_scan(np.ones((1, N, N), np.complex64), {1: "why"})
        np.testing.assert_array_equal(scan.frames[:], chunk(6).frames[[0, 2, 3]])
        np.testing.assert_array_equal(scan.positions_px, chunk(6).positions_px[[0, 2, 3]])
        spool.close()

    @pytest.mark.contract("live.spool.scan")
    def test_it_is_a_scan(self, tmp_path: Path) -> None:
        layout = dataclasses.replace(LAYOUT, photons_per_frame=3.0, geometry=Geometry(object_pixel_m=1e-8))
        spool = Spool.create(tmp_path / "spool", layout, "here")
        spool.append(chunk(6))
        spool.record_end()
        probe = np.ones((1, N, N), np.complex64)
        scan = spool.make_scan(probe, {2: "why", 4: "why"})
        kept = [0, 1, 3, 5]
        np.testing.assert_array_equal(spool.make_scan(probe, {}).frames[:], chunk(6).frames)
        np.testing.assert_array_equal(scan.scan_id, np.zeros(4))
        assert (scan.domain, scan.source) == ("counts", "here")
        np.testing.assert_array_equal(scan.probe, probe)
        np.testing.assert_array_equal(scan.mask, layout.mask)
        np.testing.assert_array_equal(scan.frames[:], chunk(6).frames[kept])
        np.testing.assert_array_equal(scan.positions_px, chunk(6).positions_px[kept])
        assert (scan.photons_per_frame, scan.left_out, scan.geometry) == (3.0, {2: "why", 4: "why"}, layout.geometry)
        with pytest.raises(StoreError, match="found 6, of which 6"):
            spool.make_scan(probe, dict.fromkeys(range(6), "why"))
        spool.close()
        again = Spool.open_existing(tmp_path / "spool")
        assert again is not None
        assert again.ended
        again.close()

    @pytest.mark.contract("live.spool.whole")
    @pytest.mark.parametrize("text", ["", "{", '{"source": 1}', "[]"])
    def test_a_manifest_that_is_none_is_an_error(self, tmp_path: Path, text: str) -> None:
        Spool.create(tmp_path / "spool", LAYOUT, "here").close()
        (tmp_path / "spool" / "spool.json").write_text(text)
        with pytest.raises(TorchptychoError, match=r"spool\.json"):
            Spool.open_existing(tmp_path / "spool")
