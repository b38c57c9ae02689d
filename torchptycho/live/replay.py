"""A scan that was recorded, played as if it were being recorded now: for trying a watch, and for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import ArrayFrames, Frames, Scan
from torchptycho.core.text import format_error
from torchptycho.io import read_scan
from torchptycho.io.frames.frame_stacks import count_frames_in, random_access_is_slow
from torchptycho.live.protocol import MAX_FRAME_BYTES, StreamRequest, make_frames_answer
from torchptycho.live.scan_header import Chunk, ScanLayout, parse_json
from torchptycho.live.zmq_source import import_zmq

__all__ = ["ReplayResult", "replay"]

_log = logging.getLogger(__name__)

_POLL_S = 0.05
_READ_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """What was played: frames in all, those that were fetched or written, and the seconds that it took."""

    frames: int
    played: int
    seconds: float


def replay(
    scan: Scan | str | Path,
    *,
    hz: float = 2000.0,
    address: str = "tcp://127.0.0.1:5555",
    swmr: str | Path | None = None,
    reading: ReadConfig | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ReplayResult:
    """Play a scan at a rate: over ZeroMQ, from when somebody asks first until all frames were fetched, or into a file.

    Arguments:
        scan: any scan file, or a scan. Frames go out as the scan has them, cut and turned by the options of reading.
        hz: frames per second that come into being; those that nobody has fetched yet wait.
        address: that the source is bound to, see `messages`; tcp://127.0.0.1:* takes any free port.
        swmr: CXI file that is written in SWMR mode instead, and closed after the last frame; there must be none yet. It
            needs counts, and lengths that turn pixels into metres.
        reading: how the scan file is read.
        stop: set it to end before all frames were fetched.
        on_progress: told the frames fetched or written, and all, now and then.

    Raises:
        ScanError: the scan cannot be read, or not be played so.
        ConfigError: a rate that is none, an address that does not work, or pyzmq is not installed.
    """
    if not 0 < hz < float("inf"):
        raise ConfigError(f"--hz: expected frames per second, more than 0; found {hz}.")
    options = dataclasses.replace(reading or ReadConfig(), guess_probe=True)
    scan = scan if isinstance(scan, Scan) else read_scan(scan, options)
    if len(np.unique(scan.scan_id)) > 1:
        raise ScanError(
            scan.source,
            None,
            expected="one scan, which alone can be played",
            found=f"{len(np.unique(scan.scan_id))} in one file",
            remedy="Cut one out with --frames START:STOP.",
        )
    stop, told = stop or threading.Event(), on_progress or (lambda done, total: None)
    with _open_random_access(scan.frames) as frames:
        if swmr is not None:
            return _write_swmr_file(scan, frames, hz, Path(swmr), stop, told)
        return _serve_frames(scan, frames, hz, address, stop, told)


def make_layout(scan: Scan) -> ScanLayout:
    """What a source tells of a scan."""
    word = hashlib.sha256(np.ascontiguousarray(scan.positions_px).tobytes()).hexdigest()[:16]
    return ScanLayout(
        scan=f"{scan.source[-900:]} {word}",
        n_px=scan.n_px,
        dtype=np.dtype(scan.frames.dtype).newbyteorder("="),
        domain=scan.domain,
        mask=scan.mask,
        geometry=scan.geometry,
        photons_per_frame=scan.photons_per_frame,
        total=scan.n_frames,
    )


def answer_request(
    request: bytes, layout: ScanLayout, frames: Frames, positions_px: np.ndarray, there: int
) -> list[bytes]:
    """What a source of these frames, of which so many are there, answers to anything that it is asked."""
    try:
        asked: StreamRequest = parse_json(StreamRequest, request, "request", "a request")
    except ScanError as error:
        return [json.dumps({"torchptycho": 1, "error": format_error(error, 2000)}).encode()]
    if asked.ask == "scan":
        return [json.dumps(layout.to_dict()).encode()]
    most = MAX_FRAME_BYTES // max(layout.frame_bytes, 16)
    start = min(asked.start, there)
    stop = min(start + min(asked.at_most, most), there)
    chunk = Chunk(
        frames=frames[start:stop] if stop > start else Chunk.empty(layout).frames,
        positions_px=positions_px[start:stop],
        end=layout.total is not None and stop >= layout.total,
    )
    return make_frames_answer(asked.start, chunk, layout.scan)


def _serve_frames(
    scan: Scan, frames: Frames, hz: float, address: str, stop: threading.Event, told: Callable[[int, int], None]
) -> ReplayResult:
    zmq = import_zmq()
    layout, n = make_layout(scan), scan.n_frames
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
    began: float | None = None
    safe = 0
    try:
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"--address: expected one that is free, such as tcp://127.0.0.1:5555; found {address} ({error}). "
                "Take another port, or tcp://127.0.0.1:* for any."
            ) from None
        _log.info("%s: served at %s", scan.source, socket.getsockopt_string(zmq.LAST_ENDPOINT))
        while not stop.is_set() and safe < n:
            if not socket.poll(int(_POLL_S * 1000)):
                continue
            parts: list[bytes] = socket.recv_multipart()
            began = time.monotonic() if began is None else began
            there = min(n, int((time.monotonic() - began) * hz))
            socket.send_multipart([*parts[:-1], *answer_request(parts[-1], layout, frames, scan.positions_px, there)])
            with contextlib.suppress(ScanError):
                safe = max(safe, min(parse_json(StreamRequest, parts[-1], "request", "a request").start, there))
            told(safe, n)
    finally:
        socket.close()
        context.term()
    return ReplayResult(frames=n, played=safe, seconds=0.0 if began is None else time.monotonic() - began)


def _write_swmr_file(
    scan: Scan, frames: Frames, hz: float, path: Path, stop: threading.Event, told: Callable[[int, int], None]
) -> ReplayResult:
    """A CXI file that grows: frames, then their positions, so that a frame with a position is whole."""
    import h5py

    n, n_px = scan.n_frames, scan.n_px
    geometry = scan.geometry.with_object_pixel(n_px)
    lengths = (geometry.energy_eV, geometry.distance_m, geometry.detector_pixel_m, geometry.object_pixel_m)
    if scan.domain != "counts" or None in lengths:
        raise ScanError(
            scan.source,
            None,
            expected="counts, and energy, distance and detector pixel, for a CXI file",
            found=f"{scan.domain}, {scan.geometry}",
            remedy="Give --energy-eV, --distance-m and --detector-pixel-m, or play it over ZeroMQ.",
        )
    if path.exists():
        raise ConfigError(f"--swmr: expected the name of a new file; found {path}, which is there. Name another one.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"--swmr: expected a file in a folder that can be written to; found {path}. Make the folder, "
            "or name another one."
        )
    energy_eV, distance_m, pixel_m, object_pixel_m = (float(value or 0) for value in lengths)
    at_once = count_frames_in(_READ_BYTES, frames)
    with h5py.File(path, "w", libver="latest") as file:
        file["cxi_version"] = 160
        detector = file.create_group("entry_1/instrument_1/detector_1")
        dtype = np.dtype(scan.frames.dtype)
        data = detector.create_dataset(
            "data", (0, n_px, n_px), dtype, maxshape=(None, n_px, n_px), chunks=(1, n_px, n_px)
        )
        moved = file.create_dataset(
            "entry_1/sample_1/geometry_1/translation", (0, 3), "f8", maxshape=(None, 3), chunks=(1024, 3)
        )
        detector["mask"] = (~scan.mask).astype(np.uint32)
        detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = distance_m, pixel_m, pixel_m
        file["entry_1/instrument_1/beam_1/energy"] = energy_eV * 1.602176634e-19
        file.swmr_mode = True
        began, done = time.monotonic(), 0
        while done < n and not stop.is_set():
            there = min(n, int((time.monotonic() - began) * hz), done + at_once)
            if there > done:
                data.resize(there, axis=0)
                data[done:there] = frames[done:there]
                data.flush()
                # The sample moves the other way than the beam, along axes that CXI has the other way round, too.
                moved.resize(there, axis=0)
                moved[done:there] = np.pad(scan.positions_px[done:there, ::-1] * object_pixel_m, ((0, 0), (0, 1)))
                moved.flush()
                done = there
                told(done, n)
            stop.wait(min(_POLL_S, 1 / hz))
        return ReplayResult(frames=n, played=done, seconds=time.monotonic() - began)


@contextlib.contextmanager
def _open_random_access(frames: Frames) -> Iterator[Frames]:
    """The frames, or a copy of them on the disk where single ones are dear."""
    if not random_access_is_slow(frames):
        yield frames
        return
    with tempfile.TemporaryFile() as file:
        copy = np.memmap(file, np.dtype(frames.dtype).newbyteorder("="), "w+", shape=frames.shape)
        start = 0
        for chunk in frames.chunks(count_frames_in(_READ_BYTES, frames)):
            copy[start : start + len(chunk)] = chunk
            start += len(chunk)
        yield ArrayFrames(copy)
