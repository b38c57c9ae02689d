"""The parts of a watch: messages, the spool, a file that grows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ConfigError, ScanError, StoreError, TorchptychoError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames
from torchptycho.io import read_scan
from torchptycho.live.hdf5_source import GrowingFile
from torchptycho.live.protocol import (
    MAX_FRAME_BYTES,
    MAX_REQUESTED_BYTES,
    make_frames_answer,
    make_frames_request,
    make_scan_request,
    parse_frames_answer,
    parse_scan_answer,
)
from torchptycho.live.replay import answer_request
from torchptycho.live.scan_header import Chunk, ScanLayout, StreamHeader, parse_json
from torchptycho.live.spool import Spool
from torchptycho.live.status import FrameRates

N = 4
LAYOUT = ScanLayout(
    scan="a scan",
    n_px=N,
    dtype=np.dtype("<u2"),
    domain="counts",
    mask=np.ones((N, N), bool),
    geometry=Geometry(),
    total=40,
)
DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4")


def chunk(count: int, layout: ScanLayout = LAYOUT, first: int = 0, *, end: bool = False) -> Chunk:
    frames = (np.arange(first * N * N, (first + count) * N * N) % 100).reshape(count, N, N).astype(layout.dtype)
    positions_px = np.stack([np.arange(first, first + count) * 1.25, np.arange(first, first + count) * -0.5], axis=1)
    return Chunk(frames=frames, positions_px=positions_px.reshape(count, 2), end=end)


def described(layout: ScanLayout = LAYOUT, **changes: Any) -> bytes:
    return json.dumps(layout.to_dict() | changes).encode()


class TestMessages:
    @pytest.mark.contract("live.messages.round-trip")
    @given(
        dtype=st.sampled_from(DTYPES),
        count=st.integers(0, 5),
        start=st.integers(0, 2**40),
        end=st.booleans(),
        bits=st.lists(st.booleans(), min_size=N * N, max_size=N * N).filter(any),
        data=st.data(),
    )
    def test_what_a_source_tells_is_read_to_the_bit(
        self, dtype: str, count: int, start: int, end: bool, bits: list[bool], data: st.DataObject
    ) -> None:
        layout = dataclasses.replace(
            LAYOUT,
            dtype=np.dtype(dtype),
            mask=np.array(bits).reshape(N, N),
            photons_per_frame=1e4,
            geometry=Geometry(energy_eV=8e3, distance_m=1.5, detector_pixel_m=5e-5).with_object_pixel(N),
        )
        found = parse_scan_answer([described(layout)], "here")
        assert found is not None
        told, read = found
        assert layout.find_difference(read) is None
        assert read.total == 40
        raw = data.draw(st.binary(min_size=count * layout.frame_bytes, max_size=count * layout.frame_bytes))
        frames = np.frombuffer(raw, dtype).reshape(count, N, N)
        where = np.array(data.draw(st.lists(st.floats(), min_size=2 * count, max_size=2 * count))).reshape(count, 2)
        parts = make_frames_answer(start, Chunk(frames=frames, positions_px=where, end=end), layout.scan)
        back = parse_frames_answer(parts, told, read, start, 5, "here")
        assert back is not None
        assert (back.frames.tobytes(), back.frames.dtype, back.end) == (raw, np.dtype(dtype), end)
        np.testing.assert_array_equal(back.positions_px, where)

    @pytest.mark.contract("live.messages.metres")
    def test_positions_in_metres_become_pixels_and_need_their_size(self) -> None:
        lengths = {"energy_eV": 8e3, "distance_m": 1.5, "detector_pixel_m": 5e-5}
        found = parse_scan_answer([described(positions_unit="m", geometry=lengths)], "here")
        assert found is not None
        told, layout = found
        pixel_m = Geometry(**lengths).with_object_pixel(N).object_pixel_m
        assert layout.geometry.object_pixel_m == pixel_m
        sent = Chunk(frames=chunk(1).frames, positions_px=np.array([[1e-6, -2e-6]]), end=False)
        back = parse_frames_answer(make_frames_answer(0, sent, "a scan"), told, layout, 0, 1, "here")
        assert back is not None
        np.testing.assert_allclose(back.positions_px, np.array([[1e-6, -2e-6]]) / pixel_m)
        with pytest.raises(ScanError, match="'geometry': expected object_pixel_m"):
            parse_scan_answer([described(positions_unit="m")], "here")

    @pytest.mark.contract("live.messages.refused")
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"torchptycho": 2}, "torchptycho"),
            ({"n_px": 10**12}, "n_px"),
            ({"n_px": 3}, "n_px"),
            ({"dtype": "|O"}, "dtype"),
            ({"dtype": "<f8"}, "dtype"),
            ({"domain": "phase"}, "domain"),
            ({"geometry": {"energy_eV": -1}}, "energy_eV"),
            ({"photons_per_frame": float("nan")}, "photons_per_frame"),
            ({"mask": "AAA"}, "mask"),
            ({"mask": "AAA="}, "good pixels"),
            ({"extra": 1}, "extra"),
            ({"n_px": 4096, "dtype": "<u8"}, "at most 67108864 bytes"),
            # Each is a length, and what follows from them is none: infinite, and too small for a number.
            *[
                (
                    {"geometry": {"energy_eV": energy, "distance_m": 1 / energy, "detector_pixel_m": pixel}, **unit},
                    "'geometry': expected lengths of an experiment",
                )
                for energy, pixel in ((1e-300, 1e-9), (1e300, 1e300))
                for unit in ({}, {"positions_unit": "m"})
            ],
        ],
    )
    def test_descriptions_that_cannot_be_are_refused_by_name(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ScanError, match=words):
            parse_scan_answer([described(**changes)], "here")

    @pytest.mark.contract("live.messages.refused")
    def test_answers_of_other_sizes_are_refused_and_name_the_frames(self) -> None:
        told: StreamHeader = parse_json(StreamHeader, described(), "here", "")
        parts = make_frames_answer(7, chunk(3), "a scan")
        for at, words in ((1, "frames 7 to 9"), (2, "frames 7 to 9")):
            short = [part[:-1] if number == at else part for number, part in enumerate(parts)]
            with pytest.raises(ScanError, match=words):
                parse_frames_answer(short, told, LAYOUT, 7, 3, "here")
        with pytest.raises(ScanError, match="at most 2 frames"):
            parse_frames_answer(parts, told, LAYOUT, 7, 2, "here")
        claims = [parts[0].replace(b'"count": 3', b'"count": 999999999999'), *parts[1:]]
        with pytest.raises(ScanError, match="at most"):
            parse_frames_answer(claims, told, LAYOUT, 7, 3, "here")
        with pytest.raises(ScanError, match="Another scan has begun"):
            parse_frames_answer(make_frames_answer(7, chunk(3), "b"), told, LAYOUT, 7, 3, "here")
        with pytest.raises(ScanError, match="a refusal: no beam"):
            parse_frames_answer([b'{"torchptycho": 1, "error": "no beam"}'], told, LAYOUT, 7, 3, "here")
        # Late answers to something else.
        assert parse_frames_answer(parts, told, LAYOUT, 8, 3, "here") is None
        assert parse_frames_answer([described()], told, LAYOUT, 7, 3, "here") is None
        assert parse_scan_answer(parts, "here") is None

    @pytest.mark.contract("live.messages.refused")
    @pytest.mark.parametrize("name", ["error", '"error"', "scan"])
    def test_a_scan_may_have_any_name(self, name: str) -> None:
        layout = dataclasses.replace(LAYOUT, scan=name)
        found = parse_scan_answer([described(layout)], "here")
        assert found is not None
        told, read = found
        assert read.scan == name
        # A late description, and a refusal that speaks of it.
        assert parse_frames_answer([described(layout)], told, read, 7, 3, "here") is None
        refusal = json.dumps({"torchptycho": 1, "error": f'no "scan" {name}'}).encode()
        with pytest.raises(ScanError, match="a refusal: no"):
            parse_frames_answer([refusal], told, read, 7, 3, "here")
        with pytest.raises(ScanError, match="a refusal: no"):
            parse_scan_answer([refusal], "here")

    @pytest.mark.contract("live.messages.any")
    @given(data=st.data())
    def test_whatever_comes_is_taken_or_an_error_of_ours(self, data: st.DataObject) -> None:
        told: StreamHeader = parse_json(StreamHeader, described(), "here", "")
        whole = [
            *make_frames_answer(7, chunk(2), "a scan"),
            described(),
            b'{"torchptycho": 1, "error": "x"}',
            b"[" * 3000,
        ]
        json_like = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["torchptycho", "from", "count", "end", "scan", "n_px", "error", "mask"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode())
        part = st.sampled_from(whole) | st.binary(max_size=64) | json_like
        parts = data.draw(st.lists(part, max_size=4))
        if parts and data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(parts) - 1))
            cut = data.draw(st.integers(0, len(parts[at])))
            parts[at] = parts[at][:cut] + data.draw(st.binary(max_size=3)) + parts[at][cut + 1 :]
        for take in (
            lambda: parse_scan_answer(parts, "here"),
            lambda: parse_frames_answer(parts, told, LAYOUT, 7, 5, "here"),
        ):
            said = "here"
            try:
                take()
            except ScanError as error:
                said = str(error)
            assert said.startswith("here")
        for request in parts:
            told_back = answer_request(request, LAYOUT, ArrayFrames(chunk(9).frames), chunk(9).positions_px, 9)
            assert len(told_back) in (1, 3)

    @pytest.mark.contract("live.messages.answers")
    def test_a_source_answers_what_there_is(self) -> None:
        frames, where = ArrayFrames(chunk(40).frames), chunk(40).positions_px
        told: StreamHeader = parse_json(
            StreamHeader, answer_request(make_scan_request(), LAYOUT, frames, where, 0)[0], "here", ""
        )

        def ask(start: int, most: int, there: int) -> Chunk:
            back = answer_request(make_frames_request(start, most), LAYOUT, frames, where, there)
            found = parse_frames_answer(back, told, LAYOUT, start, most, "here")
            assert found is not None
            return found

        assert len(ask(0, 10, 0).frames) == 0
        some = ask(5, 10, 12)
        assert (len(some.frames), some.end) == (7, False)
        np.testing.assert_array_equal(some.frames, chunk(7, first=5).frames)
        assert (len(ask(35, 10, 40).frames), ask(35, 10, 40).end) == (5, True)
        assert ask(40, 10, 40).end
        assert len(ask(2**50, MAX_FRAME_BYTES, 40).frames) == 0
        refusal = json.loads(answer_request(b"frames, please", LAYOUT, frames, where, 40)[0])
        assert refusal["torchptycho"] == 1
        assert "expected a request" in refusal["error"]


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

    @pytest.mark.contract("live.spool.scan")
    def test_it_is_a_scan(self, tmp_path: Path) -> None:
        layout = dataclasses.replace(LAYOUT, photons_per_frame=3.0, geometry=Geometry(object_pixel_m=1e-8))
        spool = Spool.create(tmp_path / "spool", layout, "here")
        spool.append(chunk(6))
        spool.record_end()
        probe = np.ones((1, N, N), np.complex64)
        scan = spool.make_scan(probe, {2: "why", 4: "why"})
        kept = [0, 1, 3, 5]
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


class TestGrowingFile:
    MAPPING = MappingConfig(frames="/data", positions_y="/where[0]", positions_x="/where[1]", positions_unit="px")

    def taken(self, source: GrowingFile, start: int) -> Chunk:
        """The next frames, however often it has to look."""
        for _ in range(100):
            found = source.fetch(start, 5)
            if len(found.frames):
                return found
        raise AssertionError("no frames")

    @pytest.mark.contract("live.file.complete")
    def test_a_frame_is_taken_when_its_position_is_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torchptycho.live.hdf5_source._POLL_INTERVAL_S", 0.0)
        path = tmp_path / "x.h5"
        reading = ReadConfig(mapping=self.MAPPING, crop_px=N, binning=2, flip_y=True, guess_probe=True)
        source = GrowingFile(path, reading)
        assert source.describe() is None
        assert "there is no" in (source.explain_wait() or "")
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 9, (30, 10, 12)).astype(np.uint16)
        where = rng.uniform(0, 50, (30, 2))
        with h5py.File(path, "w", libver="latest") as file:
            data = file.create_dataset("data", (0, 10, 12), "u2", maxshape=(None, 10, 12), chunks=(1, 10, 12))
            places = file.create_dataset("where", (0, 2), "f8", maxshape=(None, 2), chunks=(8, 2))
            file.swmr_mode = True

            def write(n_frames: int, n_places: int) -> None:
                data.resize(n_frames, axis=0)
                data[:] = frames[:n_frames]
                places.resize(n_places, axis=0)
                places[:] = where[:n_places]
                file.flush()

            # In another process: HDF5 would share the file with its writer in this one.
            write(4, 1)
            assert source.describe() is None
            write(7, 4)
        # The rest of what is looked at is a file that was closed, and one that goes on.
        layout = source.describe()
        assert layout is not None
        assert (layout.n_px, layout.dtype) == (N, np.dtype(np.uint32))
        got = self.taken(source, 0)
        assert len(got.frames) == 4
        assert not got.end
        with h5py.File(path, "r+") as file:
            file["data"].resize(30, axis=0)
            file["data"][:] = frames
            file["where"].resize(30, axis=0)
            file["where"][:] = where
        got = [got]
        while sum(len(part.frames) for part in got) < 30:
            got.append(self.taken(source, sum(len(part.frames) for part in got)))
        whole = read_scan(path, reading)
        np.testing.assert_array_equal(np.concatenate([part.frames for part in got]), whole.frames[:])
        np.testing.assert_array_equal(np.concatenate([part.positions_px for part in got]), whole.positions_px)
        np.testing.assert_array_equal(layout.mask, whole.mask)

    def watched(self, path: Path, frames: np.ndarray, where: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The source of a file whose writer has it open, as far as it says."""
        monkeypatch.setattr("torchptycho.live.hdf5_source._POLL_INTERVAL_S", 0.0)
        monkeypatch.setattr("torchptycho.live.hdf5_source.find_writer", lambda _: "swmr")
        write_stack(path, frames, where)
        source = GrowingFile(path, ReadConfig(mapping=self.MAPPING))
        assert source.describe() is not None
        return source

    @pytest.mark.contract("live.file.closed")
    def test_a_writer_that_closes_between_two_looks_leaves_no_frame_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frames, where = stack(1, 20)
        source = self.watched(tmp_path / "x.h5", frames[:12], where[:12], monkeypatch)
        assert len(source.fetch(0, 6).frames) == 6
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            file["data"].resize(20, axis=0)
            file["where"].resize(20, axis=0)
            file["data"][:], file["where"][:] = frames, where
        monkeypatch.setattr("torchptycho.live.hdf5_source.find_writer", lambda _: "none")
        # These are all that were there when it was counted last.
        got = [source.fetch(6, 6), source.fetch(12, 6), source.fetch(18, 6)]
        assert [(len(part.frames), part.end) for part in got] == [(6, False), (6, False), (2, True)]
        np.testing.assert_array_equal(np.concatenate([part.frames for part in got]), frames[6:])
        assert source.fetch(20, 6).end

    @pytest.mark.contract("live.file.other")
    @pytest.mark.parametrize(
        ("count", "edge", "in_place"), [(12, 8, False), (20, 8, False), (4, 8, False), (20, 8, True), (20, 10, False)]
    )
    def test_frames_of_another_scan_are_not_mixed_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, edge: int, in_place: bool
    ) -> None:
        path = tmp_path / "x.h5"
        frames, where = stack(1, 12)
        source = self.watched(path, frames, where, monkeypatch)
        assert len(source.fetch(0, 8).frames) == 8
        # The same way over the sample, as scans have it.
        others = np.resize(stack(2, count, edge)[0], (count, edge, edge)), np.resize(where, (count, 2))
        write_stack(path if in_place else tmp_path / "new.h5", *others)
        if not in_place:
            (tmp_path / "new.h5").replace(path)
        with pytest.raises(ScanError, match=r"found the first frames of another one.*another --out"):
            source.fetch(8, 20)

    @pytest.mark.contract("live.file.other")
    def test_another_scan_is_seen_though_nothing_new_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.h5"
        frames, where = stack(1, 12)
        source = self.watched(path, frames, where, monkeypatch)
        assert len(source.fetch(0, 12).frames) == 12
        # Copied anew, it is still the scan.
        write_stack(tmp_path / "copy.h5", frames, where)
        (tmp_path / "copy.h5").replace(path)
        assert len(source.fetch(12, 12).frames) == 0
        assert source.explain_wait() is None
        write_stack(tmp_path / "new.h5", stack(2, 12)[0], where)
        (tmp_path / "new.h5").replace(path)
        with pytest.raises(ScanError, match="found the first frames of another one"):
            source.fetch(12, 12)
        # Nor is one that was cut, whether it is counted or not.
        write_stack(path, frames[:6], where)
        for start, most in ((4, 4), (12, 12)):
            assert len(source.fetch(start, most).frames) == 0
            assert "expected the 12 frames that were there; found 6" in (source.explain_wait() or "")
        write_stack(path, stack(2, 1)[0], where[:1])
        assert len(source.fetch(12, 12).frames) == 0
        assert "expected the 12 frames that were there; found 1" in (source.explain_wait() or "")

    @pytest.mark.contract("live.file.other")
    def test_a_file_that_vanishes_is_told_as_gone_and_comes_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "x.h5"
        source = self.watched(path, *stack(1, 12), monkeypatch)
        path.rename(tmp_path / "away.h5")
        assert not source.fetch(0, 6).end
        assert "that it is gone" in (source.explain_wait() or "")
        (tmp_path / "away.h5").rename(path)
        assert len(source.fetch(0, 6).frames) == 6
        assert source.explain_wait() is None
        clock = SimpleNamespace(now=time.monotonic())
        monkeypatch.setattr("torchptycho.live.hdf5_source.time", SimpleNamespace(monotonic=lambda: clock.now))
        path.unlink()
        # It was not looked at for a while, as when there was no room, and is waited for from now on.
        clock.now += 100
        assert len(source.fetch(6, 6).frames) == 0
        clock.now += 11
        with pytest.raises(ScanError, match="that it is gone"):
            source.fetch(6, 6)

    @pytest.mark.contract("live.file.refused")
    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ScanError, match="expected an HDF5 file; found a folder"):
            GrowingFile(tmp_path, ReadConfig()).describe()

    @pytest.mark.contract("live.file.refused")
    def test_what_does_not_become_a_scan_is_told_in_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchptycho.live.hdf5_source._POLL_INTERVAL_S", 0.0)
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as file:
            file["other"] = np.zeros(3)
        source = GrowingFile(path, ReadConfig(mapping=self.MAPPING))
        assert source.describe() is None
        assert "data" in (source.explain_wait() or "")
        monkeypatch.setattr("torchptycho.live.hdf5_source._ERROR_TIMEOUT_S", 0.0)
        with pytest.raises(ScanError, match="'data'"):
            source.describe()
        (tmp_path / "x.npz").write_bytes(b"PK")
        with pytest.raises(ScanError, match="expected an HDF5 file"):
            GrowingFile(tmp_path / "x.npz", ReadConfig()).describe()
        with pytest.raises(ConfigError, match="beam_center_px"):
            GrowingFile(path, ReadConfig(beam_center_px="estimated"))


def stack(seed: int, count: int, edge: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 99, (count, edge, edge)).astype(np.uint16), rng.uniform(0, 50, (count, 2))


def write_stack(path: Path, frames: np.ndarray, where: np.ndarray) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=frames, maxshape=(None, *frames.shape[1:]), chunks=(1, *frames.shape[1:]))
        file.create_dataset("where", data=where, maxshape=(None, 2), chunks=(8, 2))


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A socket of a source that a test plays itself, and its address."""
    zmq = pytest.importorskip("zmq")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 1)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        where = f"ipc://{tmp_path}/s"
        socket.bind(where)
        yield socket, where


class TestStream:
    def opened(self, socket: Any, where: str, layout: ScanLayout = LAYOUT) -> tuple[Any, bytes]:
        """A reader that knows the scan, and its name for the source."""
        from torchptycho.live.zmq_source import StreamSource

        source = StreamSource(where)
        while not socket.poll(10):
            assert source.describe() is None
        reader, request = socket.recv_multipart()
        assert json.loads(request)["ask"] == "scan"
        socket.send_multipart([reader, described(layout)])
        while source.describe() is None:
            pass
        while socket.poll(10):
            socket.recv_multipart()
        return source, reader

    @pytest.mark.contract("live.messages.late")
    def test_a_late_answer_does_not_double_all_that_follow(
        self, line: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = SimpleNamespace(now=100.0)
        told = SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep)
        monkeypatch.setattr("torchptycho.live.zmq_source.time", told)
        socket, where = line
        source, reader = self.opened(socket, where)

        def asked() -> list[int]:
            found = []
            while socket.poll(50):
                found.append(json.loads(socket.recv_multipart()[1])["from"])
            return found

        def answer_twice(start: int, times: int = 2) -> None:
            for _ in range(times):
                socket.send_multipart([reader, *make_frames_answer(start, chunk(4, first=start), "a scan")])

        assert len(source.fetch(0, 4).frames) == 0
        clock.now += 2.5
        assert len(source.fetch(0, 4).frames) == 0
        assert asked() == [0, 0]
        answer_twice(0)
        assert len(source.fetch(0, 4).frames) == 4
        # The other answer to the same comes now, and does not have the next asked for again, nor soon.
        for _ in range(4):
            assert len(source.fetch(4, 4).frames) == 0
            clock.now += 0.9
        assert asked() == [4]
        answer_twice(4, 1)
        np.testing.assert_array_equal(source.fetch(4, 4).frames, chunk(4, first=4).frames)
        assert len(source.fetch(8, 4).frames) == 0
        assert asked() == [8]
        source.close(8)

    @pytest.mark.contract("live.messages.bounded")
    def test_what_is_sent_unasked_waits_at_the_source(self, line: tuple[Any, str]) -> None:
        import zmq

        socket, where = line
        source, reader = self.opened(socket, where)
        sent = 0
        while sent < 100:
            try:
                socket.send_multipart([reader, b"{}", bytes(1 << 20), b""], zmq.DONTWAIT)
            except zmq.Again:
                # The messages on their way have some time to arrive.
                if not socket.poll(300, zmq.POLLOUT):
                    break
                continue
            sent += 1
        assert sent < 20
        source.close(0)

    @pytest.mark.contract("live.messages.bounded")
    def test_an_answer_of_many_parts_is_refused_before_they_are_read(self, line: tuple[Any, str]) -> None:
        socket, where = line
        source, reader = self.opened(socket, where)
        assert len(source.fetch(0, 4).frames) == 0
        socket.send_multipart([reader, *make_frames_answer(0, chunk(4), "a scan"), *[b"more"] * 1000])

        with pytest.raises(ScanError, match="expected an answer of at most 3 parts; found more"):
            again_and_again(lambda: source.fetch(0, 4))
        source.close(0)

    @pytest.mark.contract("live.messages.too-large")
    def test_a_part_that_is_too_large_is_told_though_zeromq_says_nothing_of_it(self, line: tuple[Any, str]) -> None:
        socket, where = line
        source, reader = self.opened(socket, where)
        assert len(source.fetch(0, 4).frames) == 0
        socket.send_multipart([reader, b"{}", bytes(MAX_REQUESTED_BYTES + 1), b""])
        with pytest.raises(ScanError, match=rf"parts of at most {MAX_REQUESTED_BYTES} bytes.*a larger one.*at_most"):
            again_and_again(lambda: source.fetch(0, 4))
        source.close(0)

    @pytest.mark.contract("live.messages.too-large")
    def test_a_frame_of_more_than_a_part_is_taken(self, line: tuple[Any, str]) -> None:
        socket, where = line
        large = dataclasses.replace(LAYOUT, n_px=2048, dtype=np.dtype("<u4"), mask=np.ones((2048, 2048), bool))
        assert large.frame_bytes > MAX_REQUESTED_BYTES
        source, _ = self.opened(socket, where, large)
        frames = np.full((1, 2048, 2048), 7, np.uint32)
        whole = Chunk(frames=frames, positions_px=np.ones((1, 2)), end=False)
        found = source.fetch(0, 9)
        for _ in range(100):
            # The reader has come anew, under another name.
            while socket.poll(0):
                reader, request = socket.recv_multipart()
                assert json.loads(request)["at_most"] == 1
                socket.send_multipart([reader, *make_frames_answer(0, whole, "a scan")])
            found = source.fetch(0, 9)
            if len(found.frames):
                break
        np.testing.assert_array_equal(found.frames, frames)
        source.close(1)

    @pytest.mark.contract("live.messages.too-large")
    @pytest.mark.skipif(sys.platform != "linux", reason="nothing else counts what comes")
    def test_a_message_without_an_end_is_not_kept(self) -> None:
        pytest.importorskip("zmq")
        from torchptycho.live.zmq_source import StreamSource

        with socket.create_server(("127.0.0.1", 0)) as server:
            source = StreamSource(f"tcp://127.0.0.1:{server.getsockname()[1]}")
            sender = threading.Thread(target=endless, args=(server,), daemon=True)
            sender.start()
            with pytest.raises(ScanError, match=r"answers of 3 parts .*found \d+ bytes without the end of one"):
                again_and_again(source.describe)
            source.close(0)
            sender.join(30)
        assert not sender.is_alive()

    @pytest.mark.contract("live.messages.stranger")
    def test_who_is_no_source_is_told_and_a_source_in_its_place_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        zmq = pytest.importorskip("zmq")
        from torchptycho.live.zmq_source import StreamSource

        monkeypatch.setattr("torchptycho.live.zmq_source._RETRY_S", 0.3)
        with zmq.Context() as context:
            with context.socket(zmq.PUSH) as stranger:
                port = stranger.bind_to_random_port("tcp://127.0.0.1")
                source = StreamSource(f"tcp://127.0.0.1:{port}")
                for _ in range(100):
                    assert source.describe() is None
                    if "is no source of frames" in (source.explain_wait() or ""):
                        break
                assert source.explain_wait() is not None
                assert "is no source of frames: check the address" in source.explain_wait()
            with context.socket(zmq.ROUTER) as router:
                router.setsockopt(zmq.LINGER, 0)
                # The other one is closed in the background.
                for _ in range(100):
                    with contextlib.suppress(zmq.ZMQError):
                        router.bind(f"tcp://127.0.0.1:{port}")
                        break
                    time.sleep(0.02)
                found = None
                for _ in range(200):
                    found = source.describe()
                    if found is not None:
                        break
                    if router.poll(0):
                        reader, _ = router.recv_multipart()
                        # One that thinks for longer than it is asked again for is another thing.
                        for _ in range(6):
                            source.describe()
                        assert "has not answered for" in (source.explain_wait() or "")
                        router.send_multipart([reader, described()])
                assert found is not None
                assert LAYOUT.find_difference(found) is None
                source.close(0)


def again_and_again(ask: Callable[[], object]) -> None:
    for _ in range(100):
        ask()


def endless(server: socket.socket) -> None:
    """Speak ZeroMQ to one who connects, and send a message of parts without end; return when it is shut."""
    connection, _ = server.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"ROUTER"
        connection.sendall(bytes([4, len(ready)]) + ready)
        part = bytes([3]) + (1 << 20).to_bytes(8, "big") + bytes(1 << 20)
        while True:
            connection.sendall(part)


@pytest.mark.contract("live.messages.sender")
def test_the_sender_of_the_documentation_waits_for_its_first_frame(tmp_path: Path) -> None:
    pytest.importorskip("zmq")
    from torchptycho.live.zmq_source import StreamSource

    page = (Path(__file__).resolve().parents[3] / "docs" / "live.md").read_text(encoding="utf-8")
    (snippet,) = [block.split("```")[0] for block in page.split("```python\n")[1:] if "def send(" in block]
    space: dict[str, Any] = {}
    exec(snippet, space)
    whole, where = chunk(40), f"ipc://{tmp_path}/s"
    frames: list[np.ndarray] = []
    places: list[np.ndarray] = []
    got: list[Chunk] = []
    sender = threading.Thread(target=space["send"], args=(where, "a scan", frames, places, 40), daemon=True)
    sender.start()
    source = StreamSource(where)
    try:
        assert source.describe() is None
        assert sender.is_alive()
        frames.append(whole.frames[0])
        # Its position comes after it.
        places.append(whole.positions_px[0])
        while source.describe() is None:
            assert sender.is_alive()
        while not (got and got[-1].end):
            assert sender.is_alive()
            found = source.fetch(sum(len(part.frames) for part in got), 16)
            got += [found] if len(found.frames) else []
            if len(frames) < 40:
                frames.append(whole.frames[len(frames)])
                places.append(whole.positions_px[len(places)])
    finally:
        source.close(sum(len(part.frames) for part in got))
    sender.join(10)
    assert not sender.is_alive()
    np.testing.assert_array_equal(np.concatenate([part.frames for part in got]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([part.positions_px for part in got]), whole.positions_px)


@pytest.mark.contract("live.extra")
def test_without_pyzmq_one_line_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['zmq'] = None; from torchptycho.live.zmq_source import StreamSource; "
    code += "from torchptycho.core.errors import ConfigError\ntry: StreamSource('tcp://127.0.0.1:5555')\n"
    code += "except ConfigError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'torchptycho[live]'.")


@pytest.mark.contract("live.status")
def test_rates_are_those_of_the_last_seconds() -> None:
    rates = FrameRates()
    assert rates.update(0.0, 0, 0) == (0.0, 0.0)
    assert rates.update(1.0, 100, 50) == (100.0, 50.0)
    for second in range(2, 20):
        found = rates.update(float(second), 100 + 10 * (second - 1), 50)
    assert found == (10.0, 0.0)
