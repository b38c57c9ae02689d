"""Frames and positions from two sources: partners, and what has none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.live.beamline.detector import DetectorFrame, DetectorHeader
from torchptycho.live.beamline.joined_source import JoinedSource
from torchptycho.live.beamline.joining import JoinConfig, Joiner, PositionRow
from torchptycho.live.beamline.positions import GrowingCsv, PositionTopic
from torchptycho.live.receiver import Receiver


def row(key: float, y: float | None = None) -> PositionRow:
    return PositionRow(key=key, y=key if y is None else y, x=-key)


@pytest.mark.contract("live.join.index")
@given(
    order=st.permutations(range(12)),
    missing=st.sets(st.integers(0, 11)),
    first=st.sampled_from([0, 1]),
    steps=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_every_frame_gets_its_own_position_in_any_order_or_is_listed(
    order: list[int], missing: set[int], first: int, steps: list[int]
) -> None:
    joiner = Joiner(JoinConfig(first_index=first, wait_s=5.0))
    rows = [row(number + first) for number in order if number not in missing]
    found: list[np.ndarray] = []
    reasons: dict[int, str] = {}

    def settle(now_s: float) -> None:
        positions, why = joiner.settle(now_s, over=False)
        start = sum(len(part) for part in found)
        reasons.update({start + place: text for place, text in why.items()})
        found.append(positions)

    for number in range(12):
        joiner.add_frame(number, None, 0.0)
        for _ in range(steps[number % 4]):
            if rows:
                joiner.add_rows([rows.pop()], 0.0)
        settle(1.0)
    joiner.add_rows(rows, 2.0)
    settle(3.0)
    settle(8.0)
    positions = np.concatenate(found)
    expected = [np.nan if number in missing else number + first for number in range(12)]
    np.testing.assert_array_equal(positions[:, 0], expected)
    assert set(reasons) == missing
    assert joiner.count_unused() == 0
    assert joiner.n_waiting == 0


@pytest.mark.contract("live.join.index")
def test_a_number_with_two_positions_or_none_of_an_integer_is_no_partner() -> None:
    joiner = Joiner(JoinConfig(wait_s=0.0))
    for number in range(3):
        joiner.add_frame(number, None, 0.0)
    joiner.add_rows([row(0), row(1, 5.0), row(1, 6.0), row(2.5), row(0)], 0.0)
    positions, reasons = joiner.settle(1.0, over=False)
    np.testing.assert_array_equal(positions[:, 0], [0, np.nan, np.nan])
    assert reasons == {1: "no position: there are different ones for index 1", 2: "no position for index 2"}


@pytest.mark.contract("live.join.time")
def test_by_time_the_nearest_within_the_tolerance_is_taken_once() -> None:
    config = JoinConfig(by="time", tolerance_s=0.1, offset_s=100.0, wait_s=5.0)
    joiner = Joiner(config)
    for number, at_s in enumerate([1.0, 2.0, 3.0, 3.04]):
        joiner.add_frame(number, at_s, 0.0)
    joiner.add_rows([row(100.95), row(101.02)], 0.0)
    # A nearer one may follow until a position has come that is later than the tolerance.
    assert len(joiner.settle(1.0, over=False)[0]) == 0
    joiner.add_rows([row(102.2), row(103.0)], 1.0)
    positions, reasons = joiner.settle(1.0, over=False)
    np.testing.assert_array_equal(positions[:, 0], [101.02, np.nan])
    assert reasons == {1: "no position within 0.1 s"}
    positions, reasons = joiner.settle(6.5, over=False)
    np.testing.assert_array_equal(positions[:, 0], [103.0, np.nan])
    assert reasons == {1: "no position of its own: the nearest one is that of frame 2"}
    assert joiner.count_unused() == 2


@pytest.mark.contract("live.join.interpolated")
def test_between_positions_of_a_fly_scan_a_frame_is_interpolated_and_beyond_them_it_is_listed() -> None:
    joiner = Joiner(JoinConfig(by="time", tolerance_s=0.6, interpolate=True, wait_s=0.0))
    for number, at_s in enumerate([-0.1, 0.25, 1.0, 2.0, 3.5]):
        joiner.add_frame(number, at_s, 0.0)
    joiner.add_rows([row(0.0), row(1.0), row(3.0)], 0.0)
    positions, reasons = joiner.settle(0.0, over=True)
    np.testing.assert_array_equal(positions[:, 0], [np.nan, np.nan, 1.0, np.nan, np.nan])
    assert reasons[0] == reasons[4] == "no position before and after it"
    assert reasons[1] == reasons[3] == "no positions within 0.6 s before and after it"
    near = Joiner(JoinConfig(by="time", tolerance_s=0.8, interpolate=True, wait_s=0.0))
    near.add_frame(0, 0.25, 0.0)
    near.add_rows([row(0.0), row(1.0)], 0.0)
    np.testing.assert_array_equal(near.settle(0.0, over=True)[0], [[0.25, -0.25]])


@pytest.mark.contract("live.join.wait")
def test_a_late_position_is_waited_for_within_the_bound() -> None:
    joiner = Joiner(JoinConfig(wait_s=10.0))
    joiner.add_frame(0, None, 0.0)
    joiner.add_frame(1, None, 0.0)
    assert len(joiner.settle(9.9, over=False)[0]) == 0
    joiner.add_rows([row(0)], 9.9)
    np.testing.assert_array_equal(joiner.settle(19.8, over=False)[0], [[0.0, 0.0]])
    assert joiner.n_waiting == 1
    assert joiner.settle(20.0, over=False)[1] == {0: "no position for index 1"}


@pytest.mark.contract("live.join.options")
def test_options_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected a longest time, to join by time"):
        JoinConfig(by="time")
    with pytest.raises(ConfigError, match="expected them to join by time"):
        JoinConfig(interpolate=True)


class TestCsv:
    @pytest.mark.contract("live.join.csv")
    def test_lines_are_read_when_they_are_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "motors.csv"
        source = GrowingCsv(path, None)
        assert source.read() == []
        path.write_text("trigger,x,y\n1,2.5,")
        assert source.read() == []
        with path.open("a") as file:
            file.write("3e-6\n# pause\n2,0,1\n3,")
        assert source.read() == [PositionRow(1.0, 3e-6, 2.5), PositionRow(2.0, 1.0, 0.0)]
        with path.open("a") as file:
            file.write("4,5\n")
        assert source.read() == [PositionRow(3.0, 5.0, 4.0)]

    @pytest.mark.contract("live.join.csv")
    def test_columns_have_the_names_that_are_given_and_without_a_key_lines_are_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "motors.csv"
        path.write_text("n,ENC1,ENC2\n7,1,2\n")
        assert GrowingCsv(path, ("n", "ENC2", "ENC1")).read() == [PositionRow(7.0, 2.0, 1.0)]
        path.write_text("y,x\n1,2\n3,4\n")
        assert GrowingCsv(path, None).read() == [PositionRow(0.0, 1.0, 2.0), PositionRow(1.0, 3.0, 4.0)]

    @pytest.mark.contract("live.join.csv")
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a,b\n", "'y': expected a column of this name; found the columns a, b"),
            ("y,x\n1,\n", "'line 2': expected numbers; found '1,'"),
            ("y,x\n1\n", "'line 2': expected numbers"),
            ("x" * (1 << 17), "bytes without the end of one"),
        ],
    )
    def test_what_is_no_position_is_refused(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "motors.csv"
        path.write_text(text)
        with pytest.raises(ScanError, match=words):
            GrowingCsv(path, None).read()

    @pytest.mark.contract("live.join.csv")
    def test_a_file_that_is_written_anew_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "motors.csv"
        path.write_text("y,x\n1,2\n3,4\n")
        source = GrowingCsv(path, None)
        source.read()
        path.write_text("y,x\n")
        with pytest.raises(ScanError, match="found a shorter file"):
            source.read()


def read_often(source: PositionTopic) -> None:
    for _ in range(200):
        source.read()
        time.sleep(0.01)


@pytest.mark.contract("live.join.topic")
def test_published_positions_are_read_until_the_end(tmp_path: Path) -> None:
    zmq = pytest.importorskip("zmq")
    where = f"ipc://{tmp_path}/positions"
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(where)
        source = PositionTopic(where, None)
        assert publisher.poll(5000)
        publisher.send_multipart([b"motors", b'{"index": 3, "y": 1e-6, "x": 2}'])
        publisher.send(b'{"trigger": 4, "y": 5, "x": 6}\n{"end": true}')
        rows: list[PositionRow] = []
        for _ in range(200):
            rows += source.read()
            if source.ended:
                break
            time.sleep(0.01)
        assert rows == [PositionRow(3.0, 1e-6, 2.0), PositionRow(4.0, 5.0, 6.0)]
        for wrong in (b"1, 2", b'{"index": 3, "y": true, "x": 2}', b"[" * 9000):
            publisher.send(wrong)
            with pytest.raises(ScanError, match=r"expected messages such as .*index"):
                read_often(source)
        source.close()
    with pytest.raises(ConfigError, match="expected an address of this machine"):
        PositionTopic("tcp://beamline:5556", None)


class _Recorded:
    """A detector whose frames are all there and whose end is never announced, and positions of all but one of them."""

    name, keeps_frames, idle_s, ended = "recorded", True, None, False

    def __init__(self, events: list[Any]) -> None:
        self._events = events

    def read(self, at_most: int = 1000) -> list[Any]:
        events, self._events = self._events[:at_most], self._events[at_most:]
        return events

    def explain_wait(self) -> None:
        return None

    def close(self) -> None:
        return None


@pytest.mark.contract("live.join.idle")
def test_at_the_end_by_idle_time_one_missing_position_leaves_out_its_own_frame_alone(tmp_path: Path) -> None:
    images = np.random.default_rng(0).poisson(3.0, (12, 32, 32)).astype(np.uint16)
    geometry = Geometry(energy_eV=8000.0, distance_m=1.0, detector_pixel_m=75e-6)
    frames = [DetectorFrame(number=number, image=image) for number, image in enumerate(images)]
    source = JoinedSource(
        _Recorded([DetectorHeader(series="1", geometry=geometry), *frames]),
        _Recorded([PositionRow(key=float(n), y=1e-7 * n, x=-1e-7 * n) for n in range(12) if n != 2]),
        ReadConfig(),
        JoinConfig(wait_s=60.0),
    )
    with Receiver(source, tmp_path / "spool", max_backlog=100, expected=None, idle_s=0.2) as receiver:
        with receiver.changed:
            assert receiver.changed.wait_for(lambda: receiver.ended, 20)
        receiver.raise_if_failed()
        assert receiver.spool is not None
        assert receiver.spool.count == 12
        assert receiver.spool.left_out == {2: "no position for index 2"}
