"""Messages of a DECTRIS detector: what a simulated one sends is read back, and everything else is refused."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from typing import Any

import numpy as np
import pytest
from detectors import SETTINGS, load_simulated_detector, make_bad_pixels, make_frames
from hypothesis import given
from hypothesis import strategies as st

from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.live.beamline.chunk_decoder import ChunkDecoder
from torchptycho.live.beamline.dectris_stream import DectrisStream
from torchptycho.live.beamline.dectris_v1 import MessagesV1
from torchptycho.live.beamline.dectris_v2 import MessagesV2
from torchptycho.live.beamline.detector import DetectorFrame, DetectorHeader, SeriesEnd

cbor2 = pytest.importorskip("cbor2")
SIMULATED = load_simulated_detector()
BAD = make_bad_pixels()


def make_messages(version: int, frames: np.ndarray, compression: str = "bslz4", **more: Any) -> list[list[bytes]]:
    make = SIMULATED.make_messages_v1 if version == 1 else SIMULATED.make_messages_v2
    return list(make(frames, BAD, SETTINGS, compression, **more))


def make_parser(version: int, channel: str | None = None) -> Any:
    return MessagesV1("here") if version == 1 else MessagesV2("here", channel)


@pytest.mark.contract("live.dectris.images")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("compression", ["none", "lz4", "bslz4"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_images_are_read_bit_for_bit(version: int, compression: str, dtype: type) -> None:
    frames = make_frames(3, dtype=dtype)
    parser = make_parser(version)
    header, *images, end = [parser.parse(parts) for parts in make_messages(version, frames, compression)]
    assert isinstance(header, DetectorHeader)
    assert isinstance(end, SeriesEnd)
    assert end.series == header.series
    assert header.total == 3
    np.testing.assert_array_equal(header.bad_pixels, BAD)
    assert header.geometry.energy_eV == 8000.0
    assert (header.geometry.distance_m, header.geometry.detector_pixel_m) == (1.5, 75e-6)
    for number, image in enumerate(images):
        assert isinstance(image, DetectorFrame)
        assert (image.number, image.series) == (number, header.series)
        np.testing.assert_array_equal(image.image, frames[number])
        assert image.image.dtype == frames.dtype
    assert images[1].time_s - images[0].time_s == pytest.approx(0.01)
    parser.close()


@pytest.mark.contract("live.dectris.channel")
def test_one_of_several_thresholds_is_taken_and_none_is_guessed() -> None:
    frames = make_frames(2)
    messages = make_messages(2, frames, channels=("threshold_1", "threshold_2"))
    for parts in messages[:2]:
        with pytest.raises(ScanError, match=r"'channels': .*found threshold_1, threshold_2\. .*--channel"):
            MessagesV2("here").parse(parts)
        with pytest.raises(ScanError, match="expected a channel 'difference'"):
            MessagesV2("here", "difference").parse(parts)
    chosen = MessagesV2("here", "threshold_2")
    np.testing.assert_array_equal(chosen.parse(messages[1]).image, frames[0] // 2)
    with pytest.raises(ConfigError, match="one channel; found --channel x"):
        DectrisStream("dectris-v1://127.0.0.1:1", "x")


@pytest.mark.contract("live.dectris.refused")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "bs8-lz4<"}, "'encoding': expected .*bs16-lz4<.*found 'bs8-lz4<'"),
        ({"encoding": "zstd<"}, "'encoding'"),
        ({"type": "float32"}, "'type'"),
        ({"shape": [36, 33]}, "another size in the header"),
        ({"shape": [1 << 20, 1]}, "'shape"),
        ({"size": 5}, "expected 5 bytes in the third part"),
    ],
)
def test_images_that_are_not_what_they_say_are_refused(change: dict[str, Any], words: str) -> None:
    _, parts, _ = make_messages(1, make_frames(1))
    parts[1] = json.dumps(json.loads(parts[1]) | change).encode()
    with pytest.raises(ScanError, match=words):
        MessagesV1("here").parse(parts)


@pytest.mark.contract("live.dectris.refused")
def test_compressed_bytes_that_are_cut_or_lie_are_refused() -> None:
    image = make_frames(1)[0]
    decoder = ChunkDecoder(image.shape, image.dtype, "here")
    for name in ("bslz4", "lz4"):
        whole = SIMULATED.compress(image, name)
        np.testing.assert_array_equal(decoder.decode(whole, name), image)
        flipped = whole[:40] + bytes([whole[40] ^ 0xFF]) + whole[41:]
        for broken in (
            whole[:-1],
            whole[:-9],
            whole + b"x",
            whole[:14],
            whole[:3],
            b"",
            struct.pack(">Q", 1 << 50) + whole[8:],
        ):
            with pytest.raises(ScanError, match="here: 'image'"):
                decoder.decode(broken, name)
        # A byte that was changed may go unnoticed, as the format has no checksum; nothing else happens by it.
        with contextlib.suppress(ScanError):
            decoder.decode(flipped, name)
        np.testing.assert_array_equal(decoder.decode(whole, name), image)
    with pytest.raises(ScanError, match="found 5 bytes"):
        decoder.decode(b"12345", "none")
    decoder.close()


@pytest.mark.contract("live.dectris.refused")
@given(data=st.data())
def test_any_message_is_accepted_or_an_error_that_names_the_stream(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from([1, 2]))
    messages = make_messages(version, make_frames(1, (8, 8)), "none")
    parts = list(data.draw(st.sampled_from(messages)))
    at = data.draw(st.integers(0, len(parts) - 1))
    cut = data.draw(st.integers(0, len(parts[at])))
    parts[at] = parts[at][:cut] + data.draw(st.binary(max_size=6)) + parts[at][cut + data.draw(st.integers(0, 3)) :]
    said = "here"
    try:
        make_parser(version).parse(parts)
    except ScanError as error:
        said = str(error)
    assert said.startswith("here")


@pytest.mark.contract("live.dectris.stream")
@pytest.mark.parametrize("version", [1, 2])
def test_a_pushed_series_is_pulled(version: int, unused_port: int) -> None:
    frames = make_frames(20)
    sender = threading.Thread(
        target=SIMULATED.push, args=(iter(make_messages(version, frames)), f"tcp://127.0.0.1:{unused_port}", 1e5)
    )
    stream = DectrisStream(f"dectris-v{version}://127.0.0.1:{unused_port}")
    assert stream.read(5) == []
    sender.start()
    events: list[Any] = []
    deadline = time.monotonic() + 20
    while not (events and isinstance(events[-1], SeriesEnd)):
        assert time.monotonic() < deadline
        found = stream.read(7)
        assert sum(isinstance(event, DetectorFrame) for event in found) <= 7
        events += found
    stream.close()
    sender.join()
    np.testing.assert_array_equal([event.image for event in events[1:-1]], frames)


@pytest.mark.contract("live.dectris.stream")
@pytest.mark.parametrize("address", ["dectris-v2://", "dectris-v2://host:0", "dectris-v2://host:x", "dectris-v1://a/b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected a host, and perhaps a port"):
        DectrisStream(address)


@pytest.mark.contract("live.dectris.images")
@pytest.mark.parametrize("shape", [(61, 83), (128, 96), (9, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_images_of_any_shape_are_decompressed(shape: tuple[int, int], dtype: type) -> None:
    image = make_frames(1, shape, dtype)[0]
    decoder = ChunkDecoder(shape, image.dtype, "here")
    for name in ("bslz4", "lz4"):
        np.testing.assert_array_equal(decoder.decode(SIMULATED.compress(image, name), name), image)
    decoder.close()
