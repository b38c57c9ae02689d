"""Who may read the live page: a token in a header, a cookie or the address, and a bound on what a request may hold."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from email.message import Message
from http.cookies import CookieError, SimpleCookie
from io import BufferedIOBase
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from torchptycho.core.errors import ConfigError

__all__ = ["BoundedReader", "RequestTooLargeError", "find_access", "load_token", "make_cookie", "make_token"]

_COOKIE = "torchptycho-token"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,200}")


def make_token() -> str:
    """Make a new token of 192 random bits."""
    return secrets.token_urlsafe(24)


def load_token(path: Path) -> str:
    """Load a token from a file.

    Raises:
        ConfigError: the file cannot be read, can be read by others, or holds no token.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--page-token: expected a file with a token; found {path} ({error}).") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"--page-token: expected a file that its owner alone can read; found {path}, which others can read. Run "
            f"`chmod 600 {path}`."
        )
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"--page-token: expected 16 to 200 letters, digits, - or _ in {path}; found {len(text)} characters that "
            "are not such a token. `openssl rand -hex 24` makes one."
        )
    return text


def find_access(path: str, headers: Message, token: str, port: int) -> Literal["kept", "query", "none"]:
    """Find where a request names the token: "kept" in a header or cookie, "query" in its address, or nowhere.

    A token in the address decides alone, so that a new address replaces an old cookie.
    """
    try:
        given = parse_qs(urlsplit(path).query, keep_blank_values=True).get("token", [])
    except ValueError:
        given = []
    if given:
        return "query" if len(given) == 1 and _equal(given[0], token) else "none"
    scheme, _, bearer = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and _equal(bearer.strip(), token):
        return "kept"
    try:
        cookie = SimpleCookie(headers.get("Cookie", "")).get(f"{_COOKIE}-{port}")
    except CookieError:
        cookie = None
    return "kept" if cookie is not None and _equal(cookie.value, token) else "none"


def make_cookie(token: str, port: int) -> str:
    """Write a cookie that the browser keeps until it is closed, out of reach of scripts and of other sites."""
    # Cookies do not distinguish ports, and a machine may run several watches.
    return f"{_COOKIE}-{port}={token}; HttpOnly; SameSite=Strict; Path=/"


def _equal(given: str, token: str) -> bool:
    # In constant time: how long it takes does not depend on how much of the token is right.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


class RequestTooLargeError(Exception):
    """A request has more bytes than are accepted."""


class BoundedReader(BufferedIOBase):
    """A stream of which at most `limit` bytes can be read.

    Raises:
        RequestTooLargeError: by `readline` and `read`, when more bytes arrive.
    """

    def __init__(self, inner: BufferedIOBase, limit: int) -> None:
        self._inner, self._left = inner, limit

    def readline(self, size: int | None = -1, /) -> bytes:
        bound = self._left + 1
        line = self._inner.readline(bound if size is None or size < 0 else min(size, bound))
        self._left -= len(line)
        if self._left < 0:
            raise RequestTooLargeError
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        bound = self._left + 1
        content = self._inner.read(bound if size is None or size < 0 else min(size, bound))
        self._left -= len(content)
        if self._left < 0:
            raise RequestTooLargeError
        return content

    def close(self) -> None:
        self._inner.close()
