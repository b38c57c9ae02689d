"""Commands for live reconstruction."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, ClassVar, Literal

from tyro.conf import Positional

from torchptycho.cli.base import Command, ModelCommand, WritingCommand
from torchptycho.core.config import ReadConfig, load_config
from torchptycho.core.errors import ConfigError, FramesLostError
from torchptycho.core.text import format_first
from torchptycho.io.storage.outputs import check_output_folder

if TYPE_CHECKING:
    from torchptycho.live.sources import BeamlineConfig
    from torchptycho.live.stream_keys import ReaderKeys, SourceKeys

__all__ = ["Keys", "Replay", "Watch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch(ModelCommand, WritingCommand):
    """Reconstruct a scan while it is recorded.

    The scan is read from a growing HDF5 file or from a stream. Ctrl+C stops the command; run it again to continue.

    torchptycho watch scan.cxi --model run --out live
    torchptycho watch tcp://127.0.0.1:5555 --model run --out live --page
    torchptycho watch dectris-v2://10.0.0.1 --positions-from motors.csv --model run --out live
    """

    SCAN_REMEDY: ClassVar = "Say how the scan is read in the section prepare of a --config file."

    source: Positional[str]
    """HDF5 file written in SWMR mode; the address of a stream (tcp://host:port, ipc://file) or of a detector
    (dectris-v1://host, dectris-v2://host); or files that appear in a folder ('raw/*.tif')."""
    model: Path
    """Checkpoint or bundle, or the folder of a run (its best checkpoint)."""
    out: Path
    """Folder for the image, the PNG files and the status, and for the received frames (in spool)."""
    check: float | None = None
    """Frames per second that the source will send: measure whether this computer keeps up with them, and end. The
    source is not read."""
    check_frame: tuple[int, int] | None = None
    """Rows and columns of the frames that a detector sends, to include decompression and processing in the check."""
    frames: int | None = None
    """Number of frames after which the scan is over; None follows the source."""
    idle_s: float | None = None
    """Seconds without a new frame after which the scan is over. None: 30 for a file, unlimited for a stream."""
    spool_frames: int = 20_000
    """Largest number of frames on disk that wait to be reconstructed; beyond it the source has to keep them."""
    drop_spool: bool = False
    """Remove the received frames after the final image is written."""
    refresh_s: float = 2.0
    """Seconds between two live images."""
    accelerator: str = "auto"
    """Device: auto, cpu or gpu."""
    input_scale: Literal["training", "scan"] | None = None
    """Scale the input of the network as in training, or by this scan, if its dose differs from training; None as
    trained."""
    page: bool = False
    """Show the live image on a web page."""
    page_host: str = "127.0.0.1"
    """Address of the page; the default is accessible from this computer only."""
    page_port: int = 8765
    """Port of the page; 0 selects a free one."""
    page_token: Path | None = None
    """File with the token that the page asks for. None: no token on an address of this computer; on any other, a new
    one, which is part of the printed address."""
    positions_from: str | None = None
    """Positions of a detector's frames: a CSV file that grows, or the address of a program that publishes them."""
    positions_columns: tuple[str, str, str] | None = None
    """Names of the key, of y and of x there. None: index, frame, trigger or time; y; x."""
    positions_by: Literal["index", "time"] = "index"
    """What joins them with frames: the number of the frame (or trigger), or the time."""
    positions_first_index: int = 0
    """Their number for the first frame."""
    positions_tolerance_s: float | None = None
    """Longest time between a frame and its position, to join by time."""
    positions_offset_s: float = 0.0
    """Clock of the positions minus that of the detector."""
    positions_interpolate: bool = False
    """Take positions at the middle of each exposure, between those before and after it, instead of the nearest."""
    positions_wait_s: float = 10.0
    """How long a frame waits for its position, after both the frame and the latest position have arrived."""
    channel: str | None = None
    """Threshold to take from a stream dectris-v2://, such as threshold_1."""
    key: Path | None = None
    """Secret key of this reader (.key_secret), for a stream from another computer; see `torchptycho keys`."""
    source_key: Path | None = None
    """Public key (.key) of the program that sends this stream."""
    config: Path | None = None
    """YAML or TOML file with the section prepare: options for reading a file or a detector (not for a stream tcp://,
    which sends processed frames); None reads it like the network's training scans."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        reading = None if self.config is None else load_config(self.config).reading
        if not 0 <= self.page_port < 1 << 16:
            raise ConfigError(f"--page-port: expected 0 to 65535; found {self.page_port}.")
        keys = self._load_keys()
        check_output_folder(self.out)
        if self.check is not None or self.check_frame is not None:
            return self._check_rates(reading)
        self.claim_files(
            "--out",
            *(self.out / name for name in ("reconstruction.npz", "reconstruction.png")),
            resumes=(self.out / "spool").exists(),
        )
        from torchptycho.live import watch
        from torchptycho.live.page_access import load_token
        from torchptycho.live.web_page import serve
        from torchptycho.models.checkpoints import load_network

        token = None if self.page_token is None else load_token(self.page_token)
        network = load_network(self.model, trust_generator=self.trust_generator)
        with contextlib.ExitStack() as open_:
            stop = open_.enter_context(_stop_on_signals())
            if self.page:
                url = open_.enter_context(serve(self.out, self.page_host, self.page_port, token))
                sys.stderr.write(f"torchptycho: live page: {url}\n")
            result = watch(
                self.source,
                network,
                self.out,
                frames=self.frames,
                idle_s=self.idle_s,
                spool_frames=self.spool_frames,
                refresh_s=self.refresh_s,
                accelerator=self.accelerator,
                reading=reading,
                drop_spool=self.drop_spool,
                input_scale=self.input_scale,
                stop=stop,
                keys=keys,
                beamline=self._make_beamline_config(),
            )
        status, image = result.status, result.image
        report = dataclasses.asdict(status) | {
            "out": None if image is None else str(self.out / "reconstruction.npz"),
            "picture": None if image is None else str(self.out / "reconstruction.png"),
            "spool": str(self.out / "spool") if (self.out / "spool").exists() else None,
        }
        if image is None:
            self.print_result(report, f"{self.out}: {status.message}", json=self.json)
            raise KeyboardInterrupt
        height_px, width_px = image.object.shape[-2:]
        late = f"waited at most {status.longest_wait_s:.1f} s, at most {status.largest_backlog} at a time"
        paused = f"; the source had to keep some for {status.paused_s:.1f} s" if status.paused_s else ""
        left = (
            f"; {len(status.left_out)} are left out: {_list_first_frames(status.left_out)}" if status.left_out else ""
        )
        said = f"; {status.message}" if status.message else ""
        self.print_result(
            report,
            f"{self.out / 'reconstruction.npz'}, {self.out / 'reconstruction.png'}: {height_px}x{width_px} px from "
            f"{status.received} frames, which {late}{paused}{left}{said}",
            json=self.json,
        )
        if stop.is_set():
            raise KeyboardInterrupt
        if status.lost:
            raise FramesLostError(
                f"{self.source}: expected every frame that was recorded; found that {status.lost} were lost. The image "
                "is made of the others, and status.json lists them. Use a faster disk or fewer frames per second; see "
                "docs/detectors.md."
            )

    def _check_rates(self, reading: ReadConfig | None) -> None:
        """Report measured rates; raise an error if the source is faster."""
        if self.check is None or not 0 < self.check < float("inf"):
            raise ConfigError(f"--check: expected frames per second, more than 0; found {self.check}.")
        from torchptycho.live.rate_check import measure_rates
        from torchptycho.models.checkpoints import load_network

        network = load_network(self.model, trust_generator=self.trust_generator)
        self.out.mkdir(parents=True, exist_ok=True)
        rates = measure_rates(
            network, self.out, recorded_shape=self.check_frame, reading=reading, accelerator=self.accelerator
        )
        self.print_result(
            {"out": str(self.out), "asked_per_s": self.check, **dataclasses.asdict(rates)},
            f"{self.out}: receives {rates.received:.0f} frames per second and has room for {rates.room} of them; the "
            f"network takes {rates.reconstructed:.0f} per second, and frames that come faster wait on the disk",
            json=self.json,
        )
        if self.check > rates.received or (self.frames or 0) > rates.room:
            raise ConfigError(
                f"--check: expected to receive {self.check:g} frames per second"
                + (f", {self.frames} in all" if self.frames else "")
                + f"; found {rates.received:.0f} per second and room for {rates.room}. Write to a faster or larger "
                "disk, or record more slowly: frames of a detector that does not wait would be lost."
            )

    def _make_beamline_config(self) -> BeamlineConfig:
        from torchptycho.live.beamline.joining import JoinConfig
        from torchptycho.live.sources import BeamlineConfig

        return BeamlineConfig(
            positions_from=self.positions_from,
            columns=self.positions_columns,
            join=JoinConfig(
                by=self.positions_by,
                first_index=self.positions_first_index,
                tolerance_s=self.positions_tolerance_s,
                offset_s=self.positions_offset_s,
                interpolate=self.positions_interpolate,
                wait_s=self.positions_wait_s,
            ),
            channel=self.channel,
        )

    def _load_keys(self) -> ReaderKeys | None:
        if self.key is None and self.source_key is None:
            return None
        if self.key is None or self.source_key is None:
            raise ConfigError("--key, --source-key: expected both, for an encrypted stream; found one of them.")
        from torchptycho.live.stream_keys import load_reader_keys

        return load_reader_keys(self.key, self.source_key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(WritingCommand):
    """Play back a scan as if it were being recorded, to try `watch`.

    torchptycho replay scan.npz --hz 2000
    torchptycho replay scan.npz --swmr growing.cxi --energy-eV 8000 --distance-m 1 --detector-pixel-m 75e-6
    """

    scan: Positional[Path]
    """Scan file."""
    hz: float = 2000.0
    """Frames per second."""
    address: str = "tcp://127.0.0.1:5555"
    """Address for `watch`; the replay starts with the first request and ends when all frames were fetched."""
    key: Path | None = None
    """Secret key of this source (.key_secret), for readers on other computers; see `torchptycho keys`."""
    allow: Path | None = None
    """Folder with the public keys (.key) of the readers that may read this stream."""
    swmr: Path | None = None
    """Write a CXI file in SWMR mode at that rate instead, starting at once."""
    config: Path | None = None
    """YAML or TOML file with the section prepare; flags override it."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)

    def run(self) -> None:
        self.claim_files("--swmr", self.swmr, inputs=[self.scan])
        keys = self._load_keys()
        from torchptycho.core.progress import create_progress_bar
        from torchptycho.live import replay

        where = str(self.swmr or self.address)
        with _stop_on_signals() as stop, create_progress_bar() as bar:
            task = bar.add_task(f"playing to {where}", total=None, note="")
            result = replay(
                self.scan,
                hz=self.hz,
                address=self.address,
                swmr=self.swmr,
                overwrite=self.overwrite,
                reading=self.reading,
                stop=stop,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                keys=keys,
            )
        report = {"to": where, "hz": self.hz, **dataclasses.asdict(result)}
        self.print_result(
            report,
            f"{self.scan}: {result.played} of {result.frames} frames to {where} in {result.seconds:.1f} s",
            json=self.json,
        )
        if result.played < result.frames:
            raise KeyboardInterrupt

    def _load_keys(self) -> SourceKeys | None:
        if self.key is None and self.allow is None:
            return None
        if self.key is None or self.allow is None or self.swmr is not None:
            raise ConfigError(
                "--key, --allow: expected both, for a stream; found one of them, or --swmr, which writes a file."
            )
        from torchptycho.live.stream_keys import load_source_keys

        return load_source_keys(self.key, self.allow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys(Command):
    """Make the keys of a program at either end of an encrypted stream.

    The file NAME.key is public and is copied to the other side; NAME.key_secret stays where it is.

    torchptycho keys keys/detector keys/watch
    """

    names: Positional[tuple[Path, ...]]
    """Names of the pairs, without an ending."""
    json: bool = False
    """Print one JSON object instead of sentences."""

    def run(self) -> None:
        from torchptycho.live.stream_keys import make_key_pair

        if not self.names:
            raise ConfigError("expected a name for a pair of keys, such as keys/watch; found none.")
        pairs = [make_key_pair(name) for name in self.names]
        self.print_result(
            {"public": [str(public) for public, _ in pairs], "secret": [str(secret) for _, secret in pairs]},
            *(f"{public}: copy it to the other side; {secret}: keep it here" for public, secret in pairs),
            json=self.json,
        )


def _list_first_frames(left_out: dict[int, str]) -> str:
    return format_first((f"{frame} ({why})" for frame, why in sorted(left_out.items())), 5)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Set an event on the first Ctrl+C or SIGTERM; the second has its usual effect."""
    stop = threading.Event()
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    try:
        for name in before:
            signal.signal(name, handle)
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
