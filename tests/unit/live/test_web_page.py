"""The server of the live page: what it serves, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from torchptycho.core.errors import ConfigError
from torchptycho.live.live_images import IMAGE_FILES, write_live_images
from torchptycho.live.page_access import load_token
from torchptycho.live.web_page import serve

STATUS_FILE = {"state": "receiving", "source": "tcp://127.0.0.1:5555"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "watch"
    folder.mkdir()
    write_live_images(np.ones((8, 8), np.complex64), np.ones((8, 8), np.float32), None, folder)
    (folder / "status.json").write_text(json.dumps(STATUS_FILE))
    (folder / "secret.txt").write_text("secret")
    (tmp_path / "status.json").write_text("secret")
    return folder


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with serve(folder, port=0) as url:
        yield url


def ask(
    url: str, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer to a request whose path is sent as it is."""
    server = urlsplit(url)
    connection = http.client.HTTPConnection(server.hostname or "", server.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=headers is not None and "Host" in headers)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


class TestFiles:
    @pytest.mark.contract("live.page.files")
    def test_page_status_legend_and_pictures_are_served(self, url: str, folder: Path) -> None:
        answer, page = ask(url, "/")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert page.startswith(b"<!doctype html>")
        assert json.loads(ask(url, "/status.json")[1]) == STATUS_FILE
        for name in (*IMAGE_FILES, "legend.json"):
            answer, content = ask(url, f"/{name}")
            assert (answer.status, content) == (200, (folder / name).read_bytes())
            assert answer.headers["Content-Type"] == ("image/png" if name.endswith("png") else "application/json")
        assert ask(url, "/healthz")[1] == b"ok\n"

    @pytest.mark.contract("live.page.files")
    def test_files_are_served_as_they_are_at_that_moment(self, url: str, folder: Path) -> None:
        (folder / "status.json").write_text('{"state": "done"}')
        assert json.loads(ask(url, "/status.json")[1]) == {"state": "done"}

    @pytest.mark.contract("live.page.files")
    def test_what_is_not_there_yet_is_not_found(self, url: str, folder: Path) -> None:
        (folder / "phase.png").unlink()
        assert ask(url, "/phase.png")[0].status == 404

    @pytest.mark.contract("live.page.files")
    @pytest.mark.parametrize(
        "path",
        [
            "/secret.txt",
            "/watch",
            "/.",
            "/..",
            "/../status.json",
            "/./status.json",
            "/%2e%2e/status.json",
            "/status.json/",
            "/status.json%00",
            "/status.json?x",
            "/STATUS.JSON",
            "/watch/../status.json",
            "status.json",
            "\\..\\status.json",
            "http://elsewhere/status.json",
            "/amplitude.png.tmp",
            "/page.html",
        ],
    )
    def test_nothing_else_is_served(self, url: str, path: str) -> None:
        answer, content = ask(url, path)
        assert answer.status in (400, 404, 421)
        assert b"secret" not in content
        assert b"state" not in content

    @pytest.mark.contract("live.page.files")
    def test_head_is_a_get_without_its_body(self, url: str) -> None:
        whole, content = ask(url, "/amplitude.png")
        assert whole.headers["Content-Length"] == str(len(content))
        server = urlsplit(url)
        # Not by a library that would pass a body over.
        with socket.create_connection((server.hostname or "", server.port or 0), timeout=10) as raw:
            raw.sendall(b"HEAD /amplitude.png HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
        assert b" 200 " in answer.splitlines()[0]
        assert f"Content-Length: {len(content)}\r\n".encode() in answer
        assert answer.endswith(b"\r\n\r\n")

    @pytest.mark.contract("live.page.files")
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_nothing_can_be_changed(self, url: str, folder: Path, method: str) -> None:
        answer, _ = ask(url, "/status.json", method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert json.loads((folder / "status.json").read_text()) == STATUS_FILE


class TestAlone:
    @pytest.mark.contract("live.page.alone")
    @pytest.mark.parametrize("path", ["/", "/status.json", "/amplitude.png", "/nothing"])
    def test_no_answer_is_kept_or_shown_elsewhere(self, url: str, path: str) -> None:
        headers = ask(url, path)[0].headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        policy = dict(part.split(None, 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert not re.search(r"unsafe|http|\*", headers["Content-Security-Policy"])

    @pytest.mark.contract("live.page.alone")
    def test_the_page_names_nothing_from_elsewhere(self, url: str) -> None:
        page = ask(url, "/")[1].decode("utf-8")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", re.sub(r"(?m)//[ ].*$", "", page))
        # The policy knows scripts and styles by what they are, and would not let an attribute act.
        assert not re.search(r"<[^>]+\s(style|on\w+)=", page)

    @pytest.mark.contract("live.page.text")
    def test_the_page_makes_no_markup_of_what_it_is_told(self, url: str) -> None:
        page = ask(url, "/")[1].decode("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\(|new Function", page)


class TestLocal:
    @pytest.mark.contract("live.page.local")
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("127.0.0.1", 200),
            ("localhost", 200),
            ("LOCALHOST:9000", 200),
            ("[::1]:8765", 200),
            ("127.0.0.1:1", 200),
            ("elsewhere.org", 421),
            ("localhost.elsewhere.org", 421),
            ("127.0.0.1.elsewhere.org:8765", 421),
            ("10.0.0.1", 421),
            ("", 421),
        ],
    )
    def test_only_requests_that_name_this_machine_are_answered(self, url: str, host: str, status: int) -> None:
        for path in ("/", "/status.json", "/amplitude.png"):
            answer, content = ask(url, path, headers={"Host": host})
            assert answer.status == status
            assert (b"receiving" in content) == (status == 200 and path == "/status.json") or path == "/"

    @pytest.mark.contract("live.page.local")
    def test_on_other_addresses_any_name_is_answered_and_that_is_said(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with serve(folder, "0.0.0.0", 0) as url:
            assert "0.0.0.0" not in url
            port, query = urlsplit(url).port, urlsplit(url).query
            headers = {"Host": "beamline7.example.org", "Authorization": f"Bearer {query.removeprefix('token=')}"}
            answer, _ = ask(f"http://127.0.0.1:{port}/", "/status.json", headers=headers)
        assert answer.status == 200
        assert "everyone who can reach this machine and has the token" in caplog.text


TOKEN = "a-token-of-this-test-0123456789"


class TestToken:
    @pytest.mark.contract("live.page.token")
    def test_elsewhere_than_on_loopback_there_is_always_a_new_token(self, folder: Path) -> None:
        tokens = []
        for _ in range(2):
            with serve(folder, "0.0.0.0", 0) as url:
                tokens.append(urlsplit(url).query.removeprefix("token="))
                for path in ("/", "/status.json", "/amplitude.png", "/healthz", "/nothing"):
                    answer, content = ask(f"http://127.0.0.1:{urlsplit(url).port}/", path)
                    assert answer.status == 401
                    assert b"receiving" not in content
        assert len(set(tokens)) == 2
        assert min(len(token) for token in tokens) >= 32

    @pytest.mark.contract("live.page.token")
    def test_a_token_in_the_address_becomes_a_cookie(self, folder: Path) -> None:
        with serve(folder, port=0, token=TOKEN) as url:
            assert url.endswith(f"/?token={TOKEN}")
            answer, content = ask(url, f"/?token={TOKEN}")
            assert (answer.status, answer.headers["Location"], content) == (303, "/", b"")
            cookie = answer.headers["Set-Cookie"]
            assert "HttpOnly; SameSite=Strict" in cookie
            for name, value in (("Cookie", cookie.split(";")[0]), ("Authorization", f"Bearer {TOKEN}")):
                answer, content = ask(url, "/status.json", headers={"Host": "localhost", name: value})
                assert (answer.status, json.loads(content)) == (200, STATUS_FILE)

    @pytest.mark.contract("live.page.token")
    @pytest.mark.parametrize(
        ("path", "header"),
        [
            ("/status.json", None),
            (f"/?token={TOKEN[:-1]}", None),
            ("/?token=", None),
            (f"/?token=x&token={TOKEN}", None),
            (f"/?Token={TOKEN}", None),
            ("/status.json", ("Authorization", "Bearer wrong")),
            ("/status.json", ("Authorization", f"Basic {TOKEN}")),
            ("/status.json", ("Authorization", "Bearer \xff\xfe")),
            ("/status.json", ("Cookie", f"torchptycho-token={TOKEN}")),
            ("/status.json", ("Cookie", "=;=\x01")),
        ],
    )
    def test_a_wrong_token_is_refused_and_logged(
        self, folder: Path, path: str, header: tuple[str, str] | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with serve(folder, port=0, token=TOKEN) as url:
            answer, content = ask(url, path, headers={"Host": "localhost", **dict([header] if header else [])})
        assert answer.status == 401
        assert b"receiving" not in content
        assert "refused a request of 127.0.0.1" in caplog.text
        assert TOKEN not in caplog.text

    @pytest.mark.contract("live.page.token")
    def test_a_token_file_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        with pytest.raises(ConfigError, match="--page-token: expected a file with a token"):
            load_token(file)
        file.write_text(TOKEN + "\n")
        file.chmod(0o600)
        assert load_token(file) == TOKEN
        file.chmod(0o644)
        with pytest.raises(ConfigError, match="chmod 600"):
            load_token(file)
        file.write_text("short")
        file.chmod(0o600)
        with pytest.raises(ConfigError, match="expected 16 to 200 letters"):
            load_token(file)


class TestBounds:
    @pytest.mark.contract("live.page.bounded")
    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"GET /" + b"x" * 20000,
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20000,
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4000,
        ],
    )
    def test_a_request_that_is_too_large_is_refused_and_logged(
        self, url: str, request_bytes: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = urlsplit(url)
        with socket.create_connection((server.hostname or "", server.port or 0), timeout=10) as raw:
            raw.sendall(request_bytes)
            # What is not read any more may end the connection by a reset.
            try:
                answer = raw.recv(4096)
            except ConnectionResetError:
                answer = b""
        assert b" 200 " not in answer
        assert "larger than 16384 bytes" in caplog.text or b" 400 " in answer or b" 431 " in answer
        assert ask(url, "/healthz")[0].status == 200


class TestPort:
    @pytest.mark.contract("live.page.port")
    def test_a_port_in_use_is_told_in_one_line(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use.*0 for any free port") as told:
                serve(folder, port=port).__enter__()
        assert "\n" not in str(told.value)

    @pytest.mark.contract("live.page.port")
    @pytest.mark.parametrize(
        ("host", "port", "words"),
        [
            ("127.0.0.1", 70000, "expected 0 to 65535; found 70000"),
            ("127.0.0.1", -1, "expected 0 to 65535; found -1"),
            ("192.0.2.1", 0, "host '192.0.2.1': expected an address of this machine"),
            ("nowhere.invalid", 0, "host 'nowhere.invalid': expected an address of this machine"),
        ],
    )
    def test_an_address_that_cannot_be_had_is_told(self, folder: Path, host: str, port: int, words: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(words)):
            serve(folder, host, port).__enter__()

    @pytest.mark.contract("live.page.port")
    def test_the_port_is_free_after_the_block(self, folder: Path) -> None:
        with serve(folder, port=0) as url:
            port = urlsplit(url).port
            assert port
            assert ask(url, "/healthz")[0].status == 200
        with serve(folder, port=port) as again:
            assert again == url
            assert ask(again, "/healthz")[0].status == 200
        with pytest.raises(ConnectionRefusedError):
            ask(url, "/healthz")


@pytest.mark.contract("live.page.quiet")
def test_the_server_is_silent(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    ask(url, "/")
    ask(url, "/nothing")
    ask(url, "/status.json", method="POST")
    server = urlsplit(url)
    # One that goes away in the middle of its request, and one that speaks another language.
    for words in (b"GET / HTTP/1.1\r\nHo", b"\x16\x03\x01\r\n\r\n"):
        with socket.create_connection((server.hostname or "", server.port or 0)) as other:
            other.sendall(words)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    assert ask(url, "/healthz")[0].status == 200
    assert capfd.readouterr() == ("", "")
