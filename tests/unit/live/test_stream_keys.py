"""Keys of streams: who is admitted, what is refused and said."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.data.simulation import simulate
from torchptycho.live.replay import replay
from torchptycho.live.stream_keys import (
    ReaderKeys,
    is_local_address,
    load_reader_keys,
    load_source_keys,
    make_key_pair,
)

pytest.importorskip("zmq")

from torchptycho.live.zmq_source import StreamSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pairs of a source and of two readers, of which the source admits one."""
    for name in ("source", "friend", "stranger"):
        make_key_pair(tmp_path / name)
    (tmp_path / "readers").mkdir()
    (tmp_path / "friend.key").rename(tmp_path / "readers" / "friend.key")
    return tmp_path


@pytest.mark.contract("live.keys.address")
@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.8.9.1:*", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("tcp://lo:5555", True),
        ("ipc://frames.sock", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://10.1.2.3:5555", False),
        ("tcp://eth0:5555", False),
        ("tcp://localhost.elsewhere.org:5555", False),
        ("tcp://127.0.0.1:0;10.1.2.3:5555", False),
    ],
)
def test_an_address_is_local_when_no_other_machine_reaches_it(address: str, local: bool) -> None:
    assert is_local_address(address) is local
    if not local:
        with pytest.raises(ConfigError, match=r"expected keys \(--key and --source-key\)"):
            StreamSource(address)
        with pytest.raises(ConfigError, match=r"expected keys \(--key and --allow\)"):
            replay("absent.npz", address=address)


def fetch_all(folder: Path, reader: ReaderKeys | None, source: str | None = None) -> np.ndarray | str | None:
    """The frames that a reader gets from a replay with keys, or what it is told."""
    scan = simulate(SimulateConfig(n_px=32, n_frames=20, object_px=80))
    keys = load_source_keys(folder / "source.key_secret", folder / "readers")
    where, stop = f"ipc://{folder}/frames", threading.Event()
    sender = threading.Thread(
        target=replay, args=(scan,), kwargs={"hz": 1e6, "address": where, "keys": keys, "stop": stop}
    )
    sender.start()
    stream = StreamSource(where, reader)
    try:
        for _ in range(8):
            try:
                layout = stream.describe()
            except ScanError as error:
                return str(error)
            if layout is not None:
                for _ in range(100):
                    found = stream.fetch(0, 20)
                    if len(found.frames):
                        np.testing.assert_array_equal(found.frames, scan.frames[: len(found.frames)])
                        return found.frames
        return stream.explain_wait()
    finally:
        stream.close(20)
        stop.set()
        sender.join()


@pytest.mark.contract("live.keys.refused")
def test_a_listed_reader_is_admitted(folder: Path) -> None:
    assert isinstance(
        fetch_all(folder, load_reader_keys(folder / "friend.key_secret", folder / "source.key")), np.ndarray
    )


@pytest.mark.contract("live.keys.refused")
def test_a_reader_that_is_not_listed_is_refused_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = load_reader_keys(folder / "stranger.key_secret", folder / "source.key")
    with caplog.at_level(logging.WARNING):
        said = fetch_all(folder, keys)
    assert isinstance(said, str)
    assert "expected a source that admits the key of this reader (--key); found that it refuses it" in said
    assert f"refused a reader whose key {keys.public.decode()} is not in the list" in caplog.text


@pytest.mark.contract("live.keys.refused")
def test_a_reader_without_keys_or_with_the_key_of_another_source_gets_nothing(folder: Path) -> None:
    assert not isinstance(fetch_all(folder, None), np.ndarray)
    other = load_reader_keys(folder / "friend.key_secret", folder / "stranger.key")
    assert not isinstance(fetch_all(folder, other), np.ndarray)


@pytest.mark.contract("live.keys.files")
def test_keys_that_cannot_be_trusted_are_refused(folder: Path) -> None:
    secret, public = folder / "source.key_secret", folder / "source.key"
    assert secret.stat().st_mode & 0o077 == 0
    assert "secret" not in public.read_text()
    with pytest.raises(ConfigError, match="found File exists"):
        make_key_pair(folder / "source")
    with pytest.raises(ConfigError, match=r"--key: expected a secret key; found .*source.key"):
        load_reader_keys(public, public)
    with pytest.raises(ConfigError, match="--allow: expected a folder with the public keys"):
        load_source_keys(secret, folder / "nowhere")
    (folder / "short.key").write_text('public-key = "abc"\n')
    with pytest.raises(ConfigError, match="--source-key: expected a key of 40 characters"):
        load_reader_keys(secret, folder / "short.key")
    with pytest.raises(ConfigError, match="--source-key: expected a file with a CurveZMQ key"):
        load_reader_keys(secret, folder / "absent.key")
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"its owner alone can read.*chmod 600"):
        load_reader_keys(secret, public)
    assert "secret" not in repr(ReaderKeys(public=b"p", secret=b"s", source=b"o")).replace("secret=", "")
