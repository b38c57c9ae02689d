"""CurveZMQ keys of streams: who may read the frames of a source, and which source a reader believes."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchptycho.core.errors import ConfigError

__all__ = [
    "ReaderKeys",
    "SourceKeys",
    "admit_readers",
    "is_local_address",
    "load_reader_keys",
    "load_source_keys",
    "make_key_pair",
    "require_keys",
]

_log = logging.getLogger(__name__)

_PUBLIC, _SECRET = ".key", ".key_secret"
_MAKE_KEYS = "Make a pair with `torchptycho keys`"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceKeys:
    """The secret key of a source, and the public keys of the readers that it admits, by name (Z85)."""

    secret: bytes = dataclasses.field(repr=False)
    admitted: dict[bytes, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderKeys:
    """The pair of keys of a reader, and the public key of the source that it reads (Z85)."""

    public: bytes
    secret: bytes = dataclasses.field(repr=False)
    source: bytes


def make_key_pair(path: Path) -> tuple[Path, Path]:
    """Write a new pair of keys: `path`.key, to be copied, and `path`.key_secret, for its owner alone.

    Raises:
        ConfigError: the folder cannot be written to, one of the files exists, or pyzmq is not installed.
    """
    zmq, _ = _import_zmq()
    public_path, secret_path = _get_pair(path)
    public, secret = zmq.curve_keypair()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, mode, keys in ((secret_path, 0o600, (public, secret)), (public_path, 0o644, (public,))):
            names = ("public-key", "secret-key")
            text = "metadata\ncurve\n" + "".join(
                f'    {name} = "{key.decode()}"\n' for name, key in zip(names, keys, strict=False)
            )
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
                stream.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a name for two new files, {_PUBLIC} and {_SECRET}; found {error.strerror}. Name another "
            "one: keys that exist are kept."
        ) from None
    return public_path, secret_path


def load_source_keys(key: Path, allow: Path) -> SourceKeys:
    """Load the secret key of a source and the public keys (*.key) in the folder of its readers.

    Raises:
        ConfigError: a file is not a key, the secret key can be read by others, or the folder holds no key.
    """
    secret = _load_secret(key, "--key")[1]
    files = sorted(allow.glob(f"*{_PUBLIC}")) if allow.is_dir() else []
    if not files:
        raise ConfigError(
            f"--allow: expected a folder with the public keys (*{_PUBLIC}) of the readers; found none in {allow}. "
            f"{_MAKE_KEYS} for each reader and copy the file {_PUBLIC} there."
        )
    return SourceKeys(secret=secret, admitted={_load_public(file, "--allow"): file.stem for file in files})


def load_reader_keys(key: Path, source_key: Path) -> ReaderKeys:
    """Load the secret key of a reader and the public key of the source.

    Raises:
        ConfigError: a file is not a key, or the secret key can be read by others.
    """
    public, secret = _load_secret(key, "--key")
    return ReaderKeys(public=public, secret=secret, source=_load_public(source_key, "--source-key"))


def is_local_address(address: str) -> bool:
    """Check whether a ZeroMQ address connects programs of this machine only."""
    if not address.startswith("tcp:"):
        return True
    # What precedes a semicolon is the address of this end.
    host = address.removeprefix("tcp://").rpartition(";")[2].rpartition(":")[0] or address.removeprefix("tcp://")
    host = host.removeprefix("[").removesuffix("]").lower()
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(address: str, keys: SourceKeys | ReaderKeys | None, options: str) -> None:
    """Refuse an address that other machines can reach without keys.

    Raises:
        ConfigError: it is such an address, and there are no keys.
    """
    if keys is None and not is_local_address(address):
        raise ConfigError(
            f"{address}: expected keys ({options}), because other machines can reach this address; found none. "
            f"{_MAKE_KEYS} for each side, or use an address of this machine, such as tcp://127.0.0.1:5555, with an SSH "
            "tunnel."
        )


@contextlib.contextmanager
def admit_readers(context: Any, keys: SourceKeys, name: str) -> Iterator[None]:
    """Admit the readers of the list to the sockets of a context while the block runs; refuse and log all others."""
    from zmq.auth.thread import ThreadAuthenticator

    class _List:
        def callback(self, domain: str, key: bytes) -> bool:
            if key in keys.admitted:
                _log.info("%s: admitted %s", name, keys.admitted[key])
                return True
            _log.warning("%s: refused a reader whose key %s is not in the list", name, key.decode(errors="replace"))
            return False

    authenticator = ThreadAuthenticator(context, log=logging.getLogger(f"{__name__}.zmq"))
    authenticator.start()
    try:
        authenticator.configure_curve_callback("*", _List())
        yield
    finally:
        authenticator.stop()


def _get_pair(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + _PUBLIC), path.with_name(path.name + _SECRET)


def _load_secret(path: Path, option: str) -> tuple[bytes, bytes]:
    public, secret = _load(path, option)
    if secret is None:
        raise ConfigError(
            f"{option}: expected a secret key; found {path}, which has the public one alone. Name the file {_SECRET}."
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{option}: expected a file that its owner alone can read; found {path}, which others can read. Run "
            f"`chmod 600 {path}`, and make a new pair if others may have read it."
        )
    return public, secret


def _load_public(path: Path, option: str) -> bytes:
    return _load(path, option)[0]


def _load(path: Path, option: str) -> tuple[bytes, bytes | None]:
    _, auth = _import_zmq()
    try:
        public, secret = auth.load_certificate(path)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option}: expected a file with a CurveZMQ key; found {path} ({error}). {_MAKE_KEYS}."
        ) from None
    if not all(len(key) == 40 for key in (public, secret) if key is not None):
        raise ConfigError(
            f"{option}: expected a key of 40 characters; found another length in {path}. {_MAKE_KEYS}."
        ) from None
    return public, secret


def _import_zmq() -> tuple[Any, Any]:
    try:
        import zmq
        import zmq.auth
    except ImportError:
        raise ConfigError("streams need pyzmq, which is not installed: pip install 'torchptycho[live]'.") from None
    return zmq, zmq.auth
