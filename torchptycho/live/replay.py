"""Replay of a recorded scan as if it were being recorded now: to try a watch, and for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import ArrayFrames, Frames, Scan
from torchptycho.core.text import format_error
from torchptycho.io import read_scan
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.io.scan_probe import PROBE_GUESSED
from torchptycho.io.storage.outputs import check_output_file, refuse_inputs
from torchptycho.live.protocol import MAX_FRAME_BYTES, StreamRequest, make_frames_answer
from torchptycho.live.scan_header import Chunk, ScanLayout, parse_json
from torchptycho.live.stream_keys import SourceKeys, admit_readers, require_keys
from torchptycho.live.zmq_source import import_zmq

__all__ = ["ReplayResult", "replay"]

_log = logging.getLogger(__name__)

_POLL_S = 0.05
_READ_BYTES = 16 << 20
# The largest request, and its parts: the reader's address, an empty part, the request.
_MAX_REQUEST_BYTES, _MAX_REQUEST_PARTS = 1 << 16, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """Frames of the scan, frames that were fetched or written, and the duration in seconds."""

    frames: int
    played: int
    seconds: float


def replay(
    scan: Scan | str | Path,
    *,
    hz: float = 2000.0,
    address: str = "tcp://127.0.0.1:5555",
    swmr: str | Path | None = None,
    overwrite: bool = False,
    reading: ReadConfig | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    keys: SourceKeys | None = None,
) -> ReplayResult:
    """Replay a scan at a frame rate, over ZeroMQ or into a file in SWMR mode.

    Over ZeroMQ the replay begins with the first request and ends when all frames have been fetched.

    Arguments:
        scan: a scan, or a scan file of any format. Frames are sent after the options of `reading` are applied.
        hz: frames per second that become available; they wait until they are fetched.
        address: that the source binds, see `protocol`; tcp://127.0.0.1:* takes any free port.
        swmr: name of a new CXI file to write in SWMR mode instead; it is closed after the last frame. The scan needs
            counts, energy, distance and detector pixel.
        overwrite: replace that file if it exists.
        reading: how the scan file is read.
        stop: set it to end before all frames are fetched.
        on_progress: called repeatedly with the number of frames fetched or written, and of all frames.
        keys: of an encrypted stream, which an address that other machines can reach needs; see `load_source_keys`.

    Raises:
        ScanError: the scan cannot be read or replayed.
        ConfigError: the rate or the address is invalid, the address needs keys, or pyzmq is not installed.
    """
    if not 0 < hz < float("inf"):
        raise ConfigError(f"--hz: expected frames per second, more than 0; found {hz}.")
    if swmr is None:
        require_keys(address, keys, "--key and --allow")
    else:
        check_output_file(swmr, option="--swmr", replace=overwrite, remedy="Name another one.")
    options = dataclasses.replace(reading or ReadConfig(), guess_probe=True)
    scan = scan if isinstance(scan, Scan) else read_scan(scan, options)
    refuse_several_scans(scan, "a replay")
    if swmr is not None:
        refuse_inputs([swmr], (file.path for file in scan.files), option="--swmr")
    # Frames can be replayed without a probe, and a guess that was not asked for is not to be taken for a known one.
    guessed = not (reading and reading.guess_probe) and any(note.startswith(PROBE_GUESSED) for note in scan.notes)
    stop, on_progress = stop or threading.Event(), on_progress or (lambda done, total: None)
    with _open_random_access(scan.frames) as frames:
        if swmr is not None:
            probe = None if guessed else scan.probe
            return _write_swmr_file(scan, frames, probe, hz, Path(swmr), stop, on_progress)
        return _serve_frames(scan, frames, hz, address, keys, stop, on_progress)


def make_layout(scan: Scan) -> ScanLayout:
    """Make the layout that a source of this scan sends."""
    digest = hashlib.sha256(np.ascontiguousarray(scan.positions_px).tobytes()).hexdigest()[:16]
    return ScanLayout(
        scan=f"{scan.source[-900:]} {digest}",
        n_px=scan.n_px,
        dtype=np.dtype(scan.frames.dtype).newbyteorder("="),
        domain=scan.domain,
        mask=scan.mask,
        geometry=scan.geometry,
        photons_per_frame=scan.photons_per_frame,
        total=scan.n_frames,
    )


def answer_request(
    request: bytes, layout: ScanLayout, frames: Frames, positions_px: np.ndarray, n_available: int
) -> list[bytes]:
    """Answer any request to a source of these frames, of which the first `n_available` can be fetched."""
    try:
        parsed: StreamRequest = parse_json(StreamRequest, request, "request", "a request")
    except ScanError as error:
        return [json.dumps({"torchptycho": 1, "error": format_error(error, 2000)}).encode()]
    if parsed.ask == "scan":
        return [json.dumps(layout.to_dict()).encode()]
    most = MAX_FRAME_BYTES // max(layout.frame_bytes, 16)
    start = min(parsed.start, n_available)
    stop = min(start + min(parsed.at_most, most), n_available)
    chunk = Chunk(
        frames=frames[start:stop] if stop > start else Chunk.empty(layout).frames,
        positions_px=positions_px[start:stop],
        end=layout.total is not None and stop >= layout.total,
    )
    return make_frames_answer(parsed.start, chunk, layout.scan)


def _serve_frames(
    scan: Scan,
    frames: Frames,
    hz: float,
    address: str,
    keys: SourceKeys | None,
    stop: threading.Event,
    on_progress: Callable[[int, int], None],
) -> ReplayResult:
    zmq = import_zmq()
    layout, n = make_layout(scan), scan.n_frames
    began: float | None = None
    acknowledged = 0
    # The context ends last, after the sockets and the thread that checks keys.
    with zmq.Context() as context, contextlib.ExitStack() as open_:
        if keys is not None:
            open_.enter_context(admit_readers(context, keys, scan.source))
        socket = open_.enter_context(context.socket(zmq.ROUTER))
        socket.setsockopt(zmq.LINGER, 2000)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
        if keys is not None:
            socket.curve_secretkey, socket.curve_server = keys.secret, True
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"--address: expected one that is free, such as tcp://127.0.0.1:5555; found {address} ({error}). "
                "Choose another port, or tcp://127.0.0.1:* for any free one."
            ) from None
        _log.info("%s: served at %s", scan.source, socket.getsockopt_string(zmq.LAST_ENDPOINT))
        while not stop.is_set() and acknowledged < n:
            if not socket.poll(int(_POLL_S * 1000)):
                continue
            parts: list[bytes] = socket.recv_multipart()
            if len(parts) > _MAX_REQUEST_PARTS:
                _log.warning("%s: dropped a request of %d parts", scan.source, len(parts))
                continue
            began = time.monotonic() if began is None else began
            available = min(n, int((time.monotonic() - began) * hz))
            answer = answer_request(parts[-1], layout, frames, scan.positions_px, available)
            socket.send_multipart([*parts[:-1], *answer])
            with contextlib.suppress(ScanError):
                start = parse_json(StreamRequest, parts[-1], "request", "a request").start
                acknowledged = max(acknowledged, min(start, available))
            on_progress(acknowledged, n)
    return ReplayResult(frames=n, played=acknowledged, seconds=0.0 if began is None else time.monotonic() - began)


def _write_swmr_file(
    scan: Scan,
    frames: Frames,
    probe: Complex64[np.ndarray, "p n n"] | None,
    hz: float,
    path: Path,
    stop: threading.Event,
    on_progress: Callable[[int, int], None],
) -> ReplayResult:
    """Write a growing CXI file: frames first, then their positions, so that every frame with a position is complete."""
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
            remedy="Give --energy-eV, --distance-m and --detector-pixel-m, or replay it over ZeroMQ.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A watch that has the old file open keeps it, and finds the new one under the name.
    path.unlink(missing_ok=True)
    energy_eV, distance_m, pixel_m, object_pixel_m = (float(value or 0) for value in lengths)
    max_frames = count_frames_in(_READ_BYTES, frames)
    with h5py.File(path, "w", libver="latest") as file:
        file["cxi_version"] = 160
        detector = file.create_group("entry_1/instrument_1/detector_1")
        dtype = np.dtype(scan.frames.dtype)
        data = detector.create_dataset(
            "data", (0, n_px, n_px), dtype, maxshape=(None, n_px, n_px), chunks=(1, n_px, n_px)
        )
        translation = file.create_dataset(
            "entry_1/sample_1/geometry_1/translation", (0, 3), "f8", maxshape=(None, 3), chunks=(1024, 3)
        )
        detector["mask"] = (~scan.mask).astype(np.uint32)
        detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = distance_m, pixel_m, pixel_m
        file["entry_1/instrument_1/source_1/probe"] = geometry.particle
        file["entry_1/instrument_1/beam_1/energy"] = energy_eV * 1.602176634e-19
        if probe is not None:
            file["entry_1/instrument_1/source_1/illumination"] = probe
        file.swmr_mode = True
        began, done = time.monotonic(), 0
        while done < n and not stop.is_set():
            available = min(n, int((time.monotonic() - began) * hz), done + max_frames)
            if available > done:
                data.resize(available, axis=0)
                data[done:available] = frames[done:available]
                data.flush()
                # CXI's translation is that of the sample, opposite to the probe's, along axes that are also opposite.
                positions_m = scan.positions_px[done:available, ::-1] * object_pixel_m
                translation.resize(available, axis=0)
                translation[done:available] = np.pad(positions_m, ((0, 0), (0, 1)))
                translation.flush()
                done = available
                on_progress(done, n)
            stop.wait(min(_POLL_S, 1 / hz))
        return ReplayResult(frames=n, played=done, seconds=time.monotonic() - began)


@contextlib.contextmanager
def _open_random_access(frames: Frames) -> Iterator[Frames]:
    """Yield the frames, or a copy of them in a temporary file if reading single frames is slow."""
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
