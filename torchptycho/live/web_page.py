"""The server of the live page: one HTML page and the files of one folder, for browsers on this machine.

Other machines need a token (see `page_access`)."""

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
from torchptycho.live.page_access import BoundedReader, RequestTooLargeError, find_access, make_cookie, make_token

__all__ = ["STATUS_FILE", "serve"]

STATUS_FILE = "status.json"

_log = logging.getLogger(__name__)

_CONTENT_TYPES = {f"/{STATUS_FILE}": "application/json", f"/{LEGEND_FILE}": "application/json"} | {
    f"/{name}": "image/png" for name in IMAGE_FILES
}
_REQUEST_TIMEOUT_S = 10.0  # for a browser that has connected and sends nothing
_MAX_REQUEST_BYTES = 16 << 10
_NEEDS_TOKEN = (
    b"This page needs the token that `torchptycho watch` has printed: open the whole address, http://...?token=...\n"
)


@contextlib.contextmanager
def serve(folder: Path, host: str = "127.0.0.1", port: int = 8765, token: str | None = None) -> Iterator[str]:
    """Serve the page of a watched scan while the block runs; yield its address, with the token if there is one.

    The server answers with the page, `status.json`, `legend.json` and the live images of the folder, read-only, and
    with nothing else. On a loopback address it answers only requests that name this machine as their host, so that a
    page from another site cannot read the image through the user's browser.

    Arguments:
        host: address to listen on; if other machines can reach it, the page asks for a token.
        port: 0 takes any free port.
        token: that the page asks for; None: none on a loopback address, and a new one on any other.

    Raises:
        ConfigError: the port is in use or not allowed, or the address does not belong to this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port: expected 0 to 65535; found {port}. 0 takes any free port.")
    try:
        server = _Server((host, port), folder, token)
    except OSError as error:
        raise ConfigError(_explain_bind_error(error, host, port)) from None
    if not server.loopback:
        _log.warning(
            "The live page listens on %s: everyone who can reach this machine and has the token can see the image. The "
            "connection is not encrypted.",
            host,
        )
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
            f"port {port} of {host} is in use, perhaps by another watch. Choose another (--page-port), or 0 for any "
            "free port; 'ss -ltnp' names the program."
        )
    if error.errno == errno.EACCES:
        return f"port {port} of {host}: only root may listen there. Choose one above 1023, or 0 for any free port."
    return (
        f"host '{host}': expected an address of this machine; found {error.strerror or error}. "
        "127.0.0.1 is for browsers on this machine only, 0.0.0.0 for all machines that can reach it."
    )


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], folder: Path, token: str | None) -> None:
        self.folder = folder
        self.page, self.policy = _read_page_and_policy()
        host = address[0]
        # The name is resolved here because the base class needs the address family (IPv4 or IPv6) in advance.
        family, _, _, _, socket_address = socket.getaddrinfo(host, address[1], type=socket.SOCK_STREAM)[0]
        self.address_family = family
        ip = ipaddress.ip_address(socket_address[0])
        self.loopback = ip.is_loopback
        self.token = token if token is not None or self.loopback else make_token()
        super().__init__((str(socket_address[0]), address[1]), _Handler)
        # A browser cannot open an unspecified address such as 0.0.0.0; it can open the machine's name.
        shown = socket.gethostname() if ip.is_unspecified else f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_port}/" + (f"?token={self.token}" if self.token else "")

    def server_bind(self) -> None:
        # The base class would look up the name of the address, which takes seconds if no name server answers.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        # For example a browser that has disconnected; standard error belongs to the watch.
        _log.debug("request of %s was broken off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "torchptycho"
    sys_version = ""
    timeout = _REQUEST_TIMEOUT_S
    _new_cookie: str | None = None

    def setup(self) -> None:
        super().setup()
        # One request per connection: its line and headers together are bounded.
        self.rfile = BoundedReader(self.rfile, _MAX_REQUEST_BYTES)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except RequestTooLargeError:
            _log.warning("refused a request of %s: it is larger than %d bytes", self._peer, _MAX_REQUEST_BYTES)
            self.requestline, self.request_version, self.command = "", self.protocol_version, "GET"
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            self.close_connection = True

    def do_GET(self) -> None:
        # The file is read completely before the headers are sent: the next image may replace it at any time.
        status, content, kind = self._answer()
        self.send_response(status)
        if self._new_cookie is not None:
            self.send_header("Set-Cookie", self._new_cookie)
            self.send_header("Location", "/")
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
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
        self._new_cookie = None
        if self.server.loopback and not _is_loopback_host(self.headers.get("Host", "")):
            text = "This page answers to localhost and 127.0.0.1 only.\n"
            return HTTPStatus.MISDIRECTED_REQUEST, text.encode(), plain
        if self.server.token is not None:
            access = find_access(self.path, self.headers, self.server.token, self.server.server_port)
            if access == "none":
                _log.warning(
                    "refused a request of %s for %s: no token or a wrong one", self._peer, self.path[:80].split("?")[0]
                )
                return HTTPStatus.UNAUTHORIZED, _NEEDS_TOKEN, plain
            if access == "query":
                # The browser keeps the token as a cookie and opens the page again, without it in the address.
                self._new_cookie = make_cookie(self.server.token, self.server.server_port)
                return HTTPStatus.SEE_OTHER, b"", plain
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

    @property
    def _peer(self) -> str:
        return str(self.client_address[0])

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
    """Check whether a Host header names this machine; with any port, because a tunnel may begin at another one."""
    name = re.sub(r":\d*$", "", host.strip().lower())
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _read_page_and_policy() -> tuple[bytes, str]:
    """Read the page and compute the content security policy that allows only its own style and script."""
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
