"""Parts of messages that several packages write."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["format_error", "format_first"]


def format_error(error: object, limit: int | None = None) -> str:
    """Return the text of an error in one line, cut after `limit` characters."""
    return " ".join(str(error).split())[:limit]


def format_first(items: Iterable[object], limit: int, total: int | None = None, *, separator: str = ", ") -> str:
    """Return the first items in one line, and how many more there are.

    Arguments:
        items: all items, or at least the first ones.
        limit: items that are listed.
        total: number of all items; None counts `items`.
    """
    texts = [str(item) for item in items]
    more = (len(texts) if total is None else total) - limit
    return separator.join(texts[:limit]) + (f" and {more} more" if more > 0 else "")
