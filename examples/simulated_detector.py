"""A simulated DECTRIS detector: it pushes a scan over ZeroMQ as SIMPLON does, and writes the positions to a CSV file.

    python examples/simulated_detector.py scan.npz --version 2 --port 31001 --hz 200 --positions motors.csv
    torchptycho watch dectris-v2://127.0.0.1:31001 --positions-from motors.csv --model run --out live

A detector sends to whoever is connected and does not wait: with --drop 3 it loses every third frame.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import h5py
import hdf5plugin
import numpy as np
import zmq

import torchptycho as tp

_names = itertools.count()


def compress(image: np.ndarray, name: str) -> bytes:
    """Compress an image as the HDF5 filters bitshuffle with LZ4 (bslz4) or LZ4 do, with their headers."""
    chosen = hdf5plugin.Bitshuffle(cname="lz4") if name == "bslz4" else hdf5plugin.LZ4()
    with h5py.File(f"encoder-{next(_names)}", "w", driver="core", backing_store=False) as file:
        data = file.create_dataset("image", image.shape, image.dtype, chunks=image.shape, **chosen)
        data[...] = image
        return bytes(data.id.read_direct_chunk((0, 0))[1])


def extract_lz4_block(framed: bytes) -> bytes:
    """Return the only block of an image that the filter LZ4 has compressed."""
    (size,) = struct.unpack_from(">I", framed, 12)
    assert len(framed) == 16 + size
    return framed[16:]


def make_messages_v1(
    frames: np.ndarray, bad_pixels: np.ndarray, settings: dict[str, float], compression: str, series: int = 7
) -> Iterator[list[bytes]]:
    """Make the messages of a series: header, images, end."""
    n, height, width = frames.shape
    bits = 8 * frames.dtype.itemsize
    configuration = {"nimages": n, "ntrigger": 1, "bit_depth_image": bits, **settings}
    mask = bad_pixels.astype("<u4")
    yield [
        json.dumps({"htype": "dheader-1.0", "series": series, "header_detail": "all"}).encode(),
        json.dumps(configuration).encode(),
        json.dumps({"htype": "dflatfield-1.0", "shape": [width, height], "type": "float32"}).encode(),
        np.ones((height, width), "<f4").tobytes(),
        json.dumps({"htype": "dpixelmask-1.0", "shape": [width, height], "type": "uint32"}).encode(),
        mask.tobytes(),
        json.dumps({"htype": "dcountrate_table-1.0", "shape": [2, 1], "type": "float32"}).encode(),
        np.ones((1, 2), "<f4").tobytes(),
    ]
    for number, image in enumerate(frames):
        if compression == "bslz4":
            blob, encoding = compress(image, "bslz4"), f"bs{bits}-lz4<"
        elif compression == "lz4":
            blob, encoding = extract_lz4_block(compress(image, "lz4")), "lz4<"
        else:
            blob, encoding = image.tobytes(), "<"
        described = {
            "htype": "dimage_d-1.0", "shape": [width, height], "type": str(image.dtype), "encoding": encoding,
            "size": len(blob),
        }  # fmt: skip
        began_ns = number * 10_000_000
        times = {
            "htype": "dconfig-1.0", "start_time": began_ns, "stop_time": began_ns + 8_000_000, "real_time": 8_000_000,
        }  # fmt: skip
        head = {"htype": "dimage-1.0", "series": series, "frame": number, "hash": "0" * 32}
        yield [json.dumps(head).encode(), json.dumps(described).encode(), blob, json.dumps(times).encode()]
    yield [json.dumps({"htype": "dseries_end-1.0", "series": series}).encode()]


def make_messages_v2(
    frames: np.ndarray,
    bad_pixels: np.ndarray,
    settings: dict[str, float],
    compression: str,
    series: int = 7,
    channels: tuple[str, ...] = ("threshold_1",),
) -> Iterator[list[bytes]]:
    """Make the messages of a series: start, images, end. Further channels hold half of the counts."""
    typed = {1: 64, 2: 69, 4: 70}
    date = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    known = {"series_id": series, "series_unique_id": f"series-{series}"}

    def pack(array: np.ndarray, compression: str = "none") -> cbor2.CBORTag:
        content: Any = array.tobytes()
        if compression != "none":
            size = array.dtype.itemsize if compression == "bslz4" else 0
            content = cbor2.CBORTag(56500, [compression, size, compress(array, compression)])
        return cbor2.CBORTag(40, [list(array.shape), cbor2.CBORTag(typed[array.dtype.itemsize], content)])

    start = {
        "type": "start", **known, "arm_date": date, "channels": list(channels), "number_of_images": len(frames),
        "image_size_x": frames.shape[2], "image_size_y": frames.shape[1], "image_dtype": str(frames.dtype),
        "incident_energy": settings["photon_energy"], "pixel_size_x": settings["x_pixel_size"],
        "detector_translation": [0.0, 0.0, settings["detector_distance"]], "saturation_value": 65533,
        "pixel_mask": {channel: pack(bad_pixels.astype("<u4"), "bslz4") for channel in channels},
    }  # fmt: skip
    yield [cbor2.dumps(start)]
    for number, image in enumerate(frames):
        yield [
            cbor2.dumps(
                {
                    "type": "image", **known, "image_id": number, "series_date": date,
                    "start_time": [number * 1_000_000, 100_000_000], "real_time": [800_000, 100_000_000],
                    "stop_time": [number * 1_000_000 + 800_000, 100_000_000],
                    "data": {
                        channel: pack(image // (1 + place), compression) for place, channel in enumerate(channels)
                    },
                }
            )
        ]  # fmt: skip
    yield [cbor2.dumps({"type": "end", **known})]


def push(
    messages: Iterator[list[bytes]],
    address: str,
    hz: float,
    drop: int = 0,
    before: Callable[[int], None] = lambda number: None,
) -> int:
    """Push messages to the program that connects, at a frame rate; return how many frames were sent."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 5000)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.bind(address)
    sent = 0
    # The header waits for a reader, as long as there is none; images do not.
    socket.send_multipart(next(messages))
    began = time.monotonic()
    for number, message in enumerate(messages):
        time.sleep(max(0.0, began + number / hz - time.monotonic()))
        before(number)
        if drop and number % drop == drop - 1:
            continue
        socket.send_multipart(message)
        sent += 1
    socket.close()
    context.term()
    return sent - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", help="scan file; its positions go to the CSV file")
    parser.add_argument("--version", type=int, choices=(1, 2), default=2)
    parser.add_argument("--port", type=int, help="9999 for version 1, 31001 for version 2")
    parser.add_argument("--hz", type=float, default=200.0, help="frames per second")
    parser.add_argument("--positions", default="motors.csv", help="CSV file to which positions are appended, in metres")
    parser.add_argument("--compression", choices=("none", "lz4", "bslz4"), default="bslz4")
    parser.add_argument("--drop", type=int, default=0, help="lose every frame of this number: 10 loses a tenth")
    given = parser.parse_args()

    scan = tp.read_scan(given.scan)
    geometry = scan.geometry.with_object_pixel(scan.n_px)
    settings = {
        "photon_energy": geometry.energy_eV or 0.0,
        "detector_distance": geometry.distance_m or 0.0,
        "x_pixel_size": geometry.detector_pixel_m or 0.0,
    }
    frames = np.asarray(scan.frames[: scan.n_frames]).astype(np.uint32)
    make = make_messages_v1 if given.version == 1 else make_messages_v2
    port = given.port or {1: 9999, 2: 31001}[given.version]
    unit_m = geometry.object_pixel_m or 1e-9
    with Path(given.positions).open("w", encoding="utf-8") as motors:
        motors.write("index,y,x\n")

        def record(number: int) -> None:
            if number < len(frames):
                y, x = (float(value) for value in scan.positions_px[number] * unit_m)
                motors.write(f"{number},{y!r},{x!r}\n")
                motors.flush()

        print(f"pushing {len(frames)} frames to port {port}")
        messages = make(frames, ~scan.mask, settings, given.compression)
        sent = push(messages, f"tcp://127.0.0.1:{port}", given.hz, given.drop, record)
    print(f"{sent} of {len(frames)} frames sent")


if __name__ == "__main__":
    main()
