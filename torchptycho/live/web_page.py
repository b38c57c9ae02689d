"""The live page: one self-contained HTML and the files of one folder, for browsers on this machine."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import importlib.resources
import ipaddress
import logging
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from torchptycho.core.errors import ConfigError
from torchptycho.live.live_images import IMAGE_FILES, LEGEND_FILE

__all__ = ["STATUS_FILE", "serve"]

STATUS_FILE = "status.json"

_log = logging.getLogger(__name__)

_CONTENT_TYPES = {f"/{STATUS_FILE}": "application/json", f"/{LEGEND_FILE}": "application/json"} | {
    f"/{name}": "image/png" for name in IMAGE_FILES
}
_REQUEST_TIMEOUT_S = 10.0  # with a browser that has connected and says nothing


@contextlib.contextmanager
def serve(folder: Path, host: str = "127.0.0.1", port: int = 8765) -> Iterator[str]:
    """Serve the page about a watched scan while the block runs; yields its address.

    Served are the page itself, `status.json`, `legend.json` and the pictures of the folder as they are at that moment,
    to be looked at only, and nothing else. On a loopback address only requests that name this machine are answered, so
    that a page from elsewhere cannot read the image through the user's browser.

    Arguments:
        host: address to listen on; one that other machines reach lets everyone there look.
        port: 0 takes any that is free.

    Raises:
        ConfigError: the port is taken or not allowed, or the address is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port: expected 0 to 65535; found {port}. 0 takes any that is free.")
    try:
        server = _Server((host, port), folder)
    except OSError as error:
        raise ConfigError(_explain_bind_error(error, host, port)) from None
    if not server.loopback:
        _log.warning("The live page listens on %s: whoever reaches this machine can see the image.", host)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="live page", daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _explain_bind_error(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is in use, perhaps by another watch. Take another (--page-port), or 0 for any that "
            "is free; 'ss -ltnp' names the program."
        )
    if error.errno == errno.EACCES:
        return f"port {port} of {host}: only root may listen there. Take one above 1023, or 0 for any that is free."
    return (
        f"host '{host}': expected an address of this machine; found {error.strerror or error}. "
        f"127.0.0.1 is for browsers on this machine alone, 0.0.0.0 for all that reach it."
    )


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], folder: Path) -> None:
        self.folder = folder
        self.page, self.policy = _read_page_and_policy()
        host = address[0]
        # Names are looked up here, once, as the base class takes the kind of the address from its class.
        family, _, _, _, found = socket.getaddrinfo(host, address[1], type=socket.SOCK_STREAM)[0]
        self.address_family = family
        ip = ipaddress.ip_address(found[0])
        self.loopback = ip.is_loopback
        super().__init__((str(found[0]), address[1]), _Handler)
        # An address that stands for all of them leads nowhere in a browser; the machine's name does.
        shown = socket.gethostname() if ip.is_unspecified else f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_port}/"

    def server_bind(self) -> None:
        # The base class would ask for the name of the address, which takes seconds where no name server answers.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that has gone away; standard error belongs to the watcher.
        _log.debug("request of %s was broken off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "torchptycho"
    sys_version = ""
    timeout = _REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        # As a whole, before the headers: the next picture may take the file's place at any time.
        status, content, kind = self._answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def _refuse_method(self) -> None:
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = do_TRACE = _refuse_method

    def _answer(self) -> tuple[HTTPStatus, bytes, str]:
        plain = "text/plain; charset=utf-8"
        if self.server.loopback and not _is_loopback_host(self.headers.get("Host", "")):
            text = "This page answers to localhost and 127.0.0.1 only.\n"
            return HTTPStatus.MISDIRECTED_REQUEST, text.encode(), plain
        if self.path == "/":
            return HTTPStatus.OK, self.server.page, "text/html; charset=utf-8"
        if self.path == "/healthz":
            return HTTPStatus.OK, b"ok\n", plain
        if self.path in _CONTENT_TYPES:
            try:
                return HTTPStatus.OK, (self.server.folder / self.path[1:]).read_bytes(), _CONTENT_TYPES[self.path]
            except OSError:
                return HTTPStatus.NOT_FOUND, b"Not there yet.\n", plain
        return HTTPStatus.NOT_FOUND, b"There is no such page.\n", plain

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _is_loopback_host(host: str) -> bool:
    """Whether a Host header means this machine; any port, as a tunnel may begin at another one."""
    name = re.sub(r":\d*$", "", host.strip().lower())
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _read_page_and_policy() -> tuple[bytes, str]:
    """The page, and the policy under which nothing but its own style and script is obeyed."""
    text = (importlib.resources.files("torchptycho.live") / "page.html").read_text(encoding="utf-8")
    sources = {}
    for tag in ("style", "script"):
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode("ascii") for part in inner)
        sources[tag] = " ".join(f"'sha256-{value}'" for value in hashes)
    policy = (
        f"default-src 'none'; style-src {sources['style']}; script-src {sources['script']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode("utf-8"), policy
