"""Tables of numbers in text files, as people and instruments write them: one column by its name or number."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from torchptycho.core.errors import ScanError

__all__ = ["TextColumn", "read_text_column"]

_MAX_BYTES = 1 << 30
_SAMPLED_LINES = 500
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_COMMENT = re.compile(r"^\s*(?:#|%|//)+\s*")
_TRAILING_COMMENT = re.compile(r"\s#.*$")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MISSING = frozenset(("", "nan", "na", "n/a", "none", "null", "-", "--"))
_NUMBER = {
    ".": re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?$"),
    ",": re.compile(r"^[+-]?(\d+,?\d*|,\d+)([eEdD][+-]?\d+)?$"),
}
# Cells between blanks; a unit in brackets belongs to the name in front of it.
_WORDS = re.compile(r"[^\s(\[]\S*(?:\s*[(\[][^)\]]*[)\]])?|\S+")
_UNIT = re.compile(r"\s*[(\[]\s*([^)\]]*?)\s*[)\]]\s*$|_(nm|um|mm|m|px)$")
_UNIT_WORDS = frozenset(("m", "mm", "um", "μm", "nm", "px", "pixel", "pixels", "deg", "rad", "s", "a", "å"))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextColumn:
    """One column of a table.

    Arguments:
        values: of the rows; NaN where a cell is empty or says so.
        name: of the column in the header, as it is written there; "" without a header.
        unit: behind its name (in brackets, or as `_um`), or in a row of units; or None.
        commented: for each row that is commented out, the number of rows in front of it.
    """

    values: Float64[np.ndarray, " m"]
    name: str
    unit: str | None
    commented: tuple[int, ...]

    def with_commented(self) -> Float64[np.ndarray, " k"]:
        """Return the values with NaN in the place of each row that is commented out."""
        return np.insert(self.values, self.commented, np.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dialect:
    """How a table is written: what separates its cells, the decimal mark, and the number of cells in a row."""

    delimiter: str
    decimal: str
    n_cells: int = 0

    def split(self, line: str) -> list[str]:
        if self.delimiter == " ":
            return [cell.strip("\"'") for cell in _WORDS.findall(line)]
        cells = next(csv.reader([line], delimiter=self.delimiter, skipinitialspace=True), [])
        cells = [cell.strip() for cell in cells]
        # A delimiter at the end of each line.
        return cells[:-1] if self.n_cells and len(cells) == self.n_cells + 1 and not cells[-1] else cells

    def parse(self, cell: str) -> float | None:
        """Parse a number; NaN for one that is missing, None for anything else."""
        if _NUMBER[self.decimal].match(cell):
            return float(cell.replace(",", ".").replace("d", "e").replace("D", "e"))
        return float("nan") if cell.lower() in _MISSING else None

    def is_number(self, cell: str) -> bool:
        return _NUMBER[self.decimal].match(cell) is not None

    def is_row(self, cells: Sequence[str]) -> bool:
        return len(cells) == self.n_cells and any(self.is_number(cell) for cell in cells)


_DIALECTS = tuple(
    _Dialect(delimiter=delimiter, decimal=decimal)
    for decimal in ".,"
    for delimiter in "\t;, "
    if (delimiter, decimal) != (",", ",")
)


def read_text_column(path: Path, key: str, entry: int | None = None) -> TextColumn:
    """Read one column of a text file of numbers.

    Cells are separated by commas, or by semicolons, tabs or blanks, with which decimals may be written with a comma.
    The text is UTF-8, UTF-16, UTF-32 with a byte order mark, or Latin-1. Lines that begin with #, % or // are comments:
    the last one in front of the rows may hold the names of the columns, and rows that are commented out do not count.

    Arguments:
        key: name of the column, where case and a unit in brackets do not matter, or its number from 0.
        entry: its number, when there is no key.

    Raises:
        ScanError: no table, no such column, or a line without a number there.
    """
    lines = _decode(path).splitlines()
    plain = [(at, line) for at, line in enumerate(lines) if line.strip() and not _COMMENT.match(line)]
    try:
        above = [line for line in lines[: plain[0][0]] if line.strip()] if plain else []
        dialect = _choose_dialect([_TRAILING_COMMENT.sub("", line) for _, line in plain], above)
        first = next((at for at, line in plain if dialect.is_row(dialect.split(_TRAILING_COMMENT.sub("", line)))), None)
        if first is None:
            raise ScanError(
                path, key or None, expected="a table of numbers", found="no row of numbers", remedy="Save it as CSV."
            )
        header, units = _find_header(path, lines[:first], dialect)
        column = _find_column(path, key.strip(), entry, header, dialect.n_cells)
        values, commented = _read_rows(path, lines, first, dialect, column)
    except csv.Error as error:
        raise ScanError(path, None, expected="a table", found=str(error), remedy="Save it as CSV.") from None
    name = header[column] if header else ""
    matched = _UNIT.search(unicodedata.normalize("NFKC", name))
    unit = units[column] if units else (matched[1] or matched[2]) if matched else None
    return TextColumn(values=np.array(values, np.float64), name=name, unit=unit, commented=tuple(commented))


def _decode(path: Path) -> str:
    def refuse(found: str) -> ScanError:
        expected, remedy = "HDF5, NPZ, NPY or a table of text", "Save the numbers as CSV."
        return ScanError(path, None, expected=expected, found=found, remedy=remedy)

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ScanError(
                path, None, expected="a table of at most 1 GiB", found="a larger one", remedy="Save it as .npy."
            )
        content = path.read_bytes()
    except OSError as error:
        raise refuse(f"{error.strerror}") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "")
    if not encoding and len(content) > 3 and 0 in content[:2]:
        # Digits in UTF-16 without a mark: every second byte is 0.
        encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
    for name in [encoding] if encoding else ["utf-8", "latin-1"]:
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if not _CONTROL.search(text):
            return text
    raise refuse("other content")


def _choose_dialect(lines: list[str], above: list[str]) -> _Dialect:
    """Choose the way of writing in which most cells are numbers, and of these the one with most columns.

    Arguments:
        lines: those that are no comments.
        above: the comments in front of them.
    """
    sampled = lines[-_SAMPLED_LINES:]
    best, most = _DIALECTS[0], (0.0, False, 0)
    for dialect in _DIALECTS:
        rows = [dialect.split(line) for line in sampled]
        counts = Counter(len(cells) for cells in rows if any(dialect.is_number(cell) for cell in cells))
        if not counts:
            continue
        n_cells = counts.most_common(1)[0][0]
        if n_cells > 1 and all(not cells[-1] for cells in rows if len(cells) == n_cells):
            n_cells -= 1
        candidate = dataclasses.replace(dialect, n_cells=n_cells)
        rows = [candidate.split(line) for line in sampled]
        fitting = [sum(map(candidate.is_number, cells)) / n_cells if len(cells) == n_cells else 0.0 for cells in rows]
        # A header with as many names as there are columns speaks for a way of writing.
        header = candidate.split(lines[0])
        if candidate.is_row(header):
            header = candidate.split(_COMMENT.sub("", above[-1]).strip()) if above else []
        named = len(header) == n_cells and any(name.isalpha() for cell in header for name in cell)
        if (
            dialect.decimal == ","
            and n_cells == 1
            and not (named and dialect.delimiter == " " and "," not in header[0])
        ):
            # Else two columns of whole numbers, one cell of which is missing, would be decimals.
            continue
        score = (round(sum(fitting) / len(rows), 2), named, n_cells)
        if score > most:
            best, most = candidate, score
    return best


def _find_header(path: Path, before: list[str], dialect: _Dialect) -> tuple[list[str], list[str]]:
    """Find the names of the columns, and a row of units below them, in what stands in front of the rows.

    Raises:
        ScanError: the last line has another number of cells than the rows.
    """
    fitting = []
    last_plain = ""
    for line in before:
        text = _COMMENT.sub("", line).strip()
        cells = dialect.split(text) if text else []
        if not _COMMENT.match(line) and text:
            last_plain = text
        if len(cells) == dialect.n_cells and not any(dialect.is_number(cell) for cell in cells):
            fitting.append((line, cells))
    if last_plain and dialect.delimiter != " ":
        n_names = len(dialect.split(last_plain))
        if n_names > 1 and n_names != dialect.n_cells:
            raise ScanError(
                path,
                None,
                expected=f"rows of {n_names} cells, as the line '{last_plain[:60]}' above them",
                found=f"rows of {dialect.n_cells}",
                remedy="With decimal commas, separate the cells by semicolons or tabs; else repair the line.",
            )
    names = [cells for _, cells in fitting]
    if not names:
        return [], []
    stripped = [unicodedata.normalize("NFKC", cell.strip("()[] ")).lower() for cell in names[-1]]
    if len(names) > 1 and all(cell in _UNIT_WORDS or not cell for cell in stripped) and any(stripped):
        return names[-2], [cell.strip("()[] ") for cell in names[-1]]
    return names[-1], []


def _find_column(path: Path, key: str, entry: int | None, header: list[str], n_cells: int) -> int:
    def simplify(name: str) -> str:
        return unicodedata.normalize("NFKC", name).casefold().strip()

    exact = [at for at, name in enumerate(header) if name == key]
    alike = [at for at, name in enumerate(header) if simplify(name) == simplify(key)]
    bare = [at for at, name in enumerate(header) if simplify(re.sub(_UNIT, "", name)) == simplify(key)]
    matches = next((found for found in (exact, alike, bare) if found), []) if key else []
    if len(matches) == 1:
        return matches[0]
    number = entry if not key else int(key) if key.isascii() and key.isdigit() and not matches else None
    if number is None and not key and n_cells == 1:
        number = 0
    if number is None or number >= n_cells:
        named = f"columns {', '.join(header)}" if header else f"{n_cells} columns without names"
        raise ScanError(
            path,
            key or None,
            expected="the name of a column or its number from 0",
            found=named if len(matches) < 2 else f"{len(matches)} columns of that name among {named}",
            remedy="Name one, as FILE.csv:x.",
        )
    return number


def _read_rows(
    path: Path, lines: list[str], first: int, dialect: _Dialect, column: int
) -> tuple[list[float], list[int]]:
    """Read the numbers of a column, and where rows are commented out.

    Raises:
        ScanError: a line without a number there.
    """
    pattern = [dialect.is_number(cell) for cell in dialect.split(_TRAILING_COMMENT.sub("", lines[first]))]
    values: list[float] = []
    commented: list[int] = []
    for at, line in enumerate(lines):
        marked = _COMMENT.match(line)
        text = _TRAILING_COMMENT.sub("", line[marked.end() :] if marked else line)
        if not text.strip():
            continue
        if marked:
            cells = dialect.split(text)
            if [dialect.is_number(cell) for cell in cells] == pattern:
                commented.append(len(values))
            continue
        if at < first:
            continue
        cells = dialect.split(text)
        value = dialect.parse(cells[column]) if len(cells) == dialect.n_cells else None
        if value is None:
            what = f"'{cells[column][:40]}'" if len(cells) == dialect.n_cells else f"{len(cells)} cell(s)"
            raise ScanError(
                path,
                f"line {at + 1}",
                expected=f"{dialect.n_cells} cell(s), a number in column {column} (counted from 0)",
                found=what,
                remedy="Repair the line, or comment it out with #.",
            )
        values.append(value)
    return values, commented
