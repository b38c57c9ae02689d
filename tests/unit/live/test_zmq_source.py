"""Streams over ZeroMQ."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chunks import LAYOUT, chunk, described

from torchptycho.core.errors import ScanError
from torchptycho.live.protocol import (
    MAX_REQUESTED_BYTES,
    make_frames_answer,
)
from torchptycho.live.scan_header import Chunk, ScanLayout


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
                    if "is not a frame source" in (source.explain_wait() or ""):
                        break
                assert source.explain_wait() is not None
                assert "is not a frame source: check the address" in source.explain_wait()
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
