"""Messages between a source and its reader."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from chunks import LAYOUT, N, chunk, described
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames
from torchptycho.live.protocol import (
    MAX_FRAME_BYTES,
    make_frames_answer,
    make_frames_request,
    make_scan_request,
    parse_frames_answer,
    parse_scan_answer,
)
from torchptycho.live.replay import answer_request
from torchptycho.live.scan_header import Chunk, StreamHeader, parse_json

DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4")


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
