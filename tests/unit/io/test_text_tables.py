"""Tables of positions as people have them: separators, decimal marks, encodings, comments, names and units."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from torchptycho.core.config import MappingConfig, ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io import read_scan
from torchptycho.io.array_refs import parse_array_ref
from torchptycho.io.text_tables import read_text_column

X = np.array([1.25, -2.5, 3.0e-3, 4.0, 12.75])
Y = np.array([0.5, 1.5, -2.5, 300.125, 4.0])
PLAIN = "".join(f"{x!r},{y!r}\n" for x, y in zip(X.tolist(), Y.tolist(), strict=True))


def rows(separator: str, comma: bool = False, start: str = "", end: str = "") -> str:
    text = "".join(f"{start}{x!r}{separator}{y!r}{end}\n" for x, y in zip(X.tolist(), Y.tolist(), strict=True))
    return text.replace(".", ",") if comma else text


TABLES = {
    "plain": "x,y\n" + PLAIN,
    "commented header": "# x,y\n" + PLAIN,
    "commented header below a title": "# scan 7\n# piezo, um, closed loop\n# x,y\n" + PLAIN,
    "percent header": "% x y\n" + rows(" "),
    "preamble": "# stage: piezo\nx y\n" + rows(" "),
    "plain preamble": "Scan 17 at 8 keV\nrecorded by night\n\nx y\n" + rows(" "),
    "semicolons and decimal commas": "x;y\n" + rows(";", comma=True),
    "tabs and decimal commas": "x\ty\n" + rows("\t", comma=True),
    "blanks and decimal commas": "x y\n" + rows("  ", comma=True),
    "semicolons": "x;y\n" + rows(";"),
    "tabs": "x\ty\n" + rows("\t"),
    "padded": "x, y\n" + rows(", ", start=" ", end="  "),
    "blanks": "x  y\n" + rows("   ", start="  "),
    "quoted": '"x","y"\n' + rows('","', start='"', end='"'),
    "separator at the end": "x,y,\n" + rows(",", end=","),
    "separator at the end of rows": "x,y\n" + rows(",", end=","),
    "blank lines": "x,y\n\n" + PLAIN.replace("\n", "\n\n"),
    "old line ends": ("x,y\n" + PLAIN).replace("\n", "\r"),
    "exponents": "x,y\n" + "".join(f"{x:.6E},{y:.6E}\n" for x, y in zip(X, Y, strict=True)),
    "fortran": "x y\n" + "".join(f"{x:.6E} {y:.6E}\n" for x, y in zip(X, Y, strict=True)).replace("E", "D"),
    "upper": "X,Y\n" + PLAIN,
    "units in brackets": "x (um),y [um]\n" + PLAIN,
    "units in brackets after blanks": "x (um)  y (um)\n" + rows(" "),
    "row of units": "x,y\num,um\n" + PLAIN,
    "index": "i,x,y\n" + "".join(f"{i},{line}\n" for i, line in enumerate(PLAIN.splitlines())),
    "names of files": "file;x;y\n" + "".join(f"a 0,1.tif;{line}\n" for line in rows(";", comma=True).splitlines()),
    "times": "t,x,y\n" + "".join(f"2024-01-05 10:00:0{i},{line}\n" for i, line in enumerate(PLAIN.splitlines())),
    "trailing comments": "x,y\n" + rows(",", end=" # good"),
}  # fmt: skip


@pytest.mark.contract("files.table")
@pytest.mark.parametrize("name", TABLES)
def test_one_column_however_it_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TABLES[name].encode())
    for key, expected in (("x", X), ("y", Y)):
        np.testing.assert_allclose(read_text_column(path, key).values, expected, rtol=1e-6)


@pytest.mark.contract("files.table")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_one_column_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(("x (µm);y (µm)\r\n" + rows(";").replace("\n", "\r\n")).encode(encoding))
    column = read_text_column(path, "Y")
    np.testing.assert_array_equal(column.values, Y)
    # The sign for micro has two code points.
    assert column.unit == "μm"
    np.testing.assert_array_equal(read_text_column(path, "x (μm)").values, X)


@pytest.mark.contract("files.table")
def test_columns_by_number_and_their_units(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(PLAIN)
    np.testing.assert_array_equal(parse_array_ref("t.txt:1", tmp_path).load(), Y)
    np.testing.assert_array_equal(parse_array_ref("t.txt[0]", tmp_path).load(), X)
    assert read_text_column(path, "1").unit is None
    for header, unit in (("x_um,y_mm", "mm"), ("x,y\nnm,nm", "nm"), ("x,y (pixel)", "pixel")):
        path.write_text(f"{header}\n{PLAIN}")
        assert read_text_column(path, "y" if "_" not in header else "y_mm").unit == unit
    path.write_text("0.5\n1.5\n")
    np.testing.assert_array_equal(read_text_column(path, "").values, [0.5, 1.5])
    path.write_text("y\n0,5\n1,5\n")
    np.testing.assert_array_equal(read_text_column(path, "y").values, [0.5, 1.5])


@pytest.mark.contract("files.table.commented")
def test_rows_that_are_commented_out_do_not_count(tmp_path: Path) -> None:
    lines = ["x,y", *PLAIN.splitlines()]
    lines.insert(3, "#999.0,999.0")
    lines.insert(5, "# the beam stop moved here")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    place = parse_array_ref("t.csv:y", tmp_path)
    np.testing.assert_array_equal(place.load(), Y)
    np.testing.assert_array_equal(place.load(n_frames=len(Y)), Y)
    # With a frame for each row, this one is without a position, and the others keep theirs.
    np.testing.assert_array_equal(place.load(n_frames=len(Y) + 1), np.insert(Y, 2, np.nan))
    np.testing.assert_array_equal(place.load(n_frames=len(Y) + 2), Y)


@pytest.mark.contract("files.table")
def test_missing_cells_are_nan(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n1,2\n3,\n4,NaN\n5,6\n")
    np.testing.assert_array_equal(read_text_column(tmp_path / "t.csv", "y").values, [2, np.nan, np.nan, 6])


@pytest.mark.contract("files.table.refused")
@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ("x,y\n1,5,2,5\n3,5,4,5\n", "y", "rows of 2 cells, as the line 'x,y' above them; found rows of 4"),
        ("x;y\n1,5;2,5\n1.234,5;4,5\n", "x", "'line 3': expected 2 cell(s), a number in column 0"),
        ("x,y\n1,2\n3,4\nEND\n", "y", "'line 4'"),
        ("x,y\n1,2\n3,abc\n", "y", "found 'abc'"),
        ("y,y\n1,2\n", "y", "2 columns of that name"),
        ("y (um),y (mm)\n1,2\n", "y", "2 columns of that name"),
        ("x,y\n1,2\n", "7", "columns x, y"),
        ("1,2\n3\n", "0", "'line 2'"),
        ("only words\n", "x", "no row of numbers"),
        ("# 1,2\n", "0", "no row of numbers"),
    ],
)
def test_a_table_that_may_be_read_in_two_ways_or_does_not_fit_is_refused(
    tmp_path: Path, table: str, key: str, words: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ScanError) as caught:
        read_text_column(tmp_path / "t.csv", key)
    assert words in str(caught.value)


@pytest.mark.contract("files.table.refused")
def test_other_content_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(bytes(range(256)))
    with pytest.raises(ScanError, match="a table of text; found other content"):
        read_text_column(tmp_path / "t.csv", "x")


@pytest.mark.contract("files.table")
def test_the_unit_behind_a_name_counts_unless_another_is_stated(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(20, (5, 8, 8)).astype(np.uint16)
    np.save(tmp_path / "s.npy", frames)
    (tmp_path / "t.csv").write_text("x (um),y [nm]\n" + "".join(f"{x},{1000 * x * x}\n" for x in np.arange(1, 6) / 10))
    mapping = MappingConfig(frames="s.npy", positions_y="t.csv:y", positions_x="t.csv:x")
    lengths = {"energy_eV": 8000.0, "distance_m": 1.0, "detector_pixel_m": 2e-4}
    config = ReadConfig(mapping=mapping, guess_probe=True, **lengths)
    scan = read_scan(tmp_path / "s.npy", config)
    pixel_m = scan.geometry.object_pixel_m
    assert pixel_m is not None
    expected = np.stack([np.arange(1, 6) ** 2 / 100, np.arange(1, 6) / 10], 1) * 1e-6 / pixel_m
    np.testing.assert_allclose(scan.positions_px, expected, rtol=1e-6)
    stated = dataclasses.replace(config, mapping=dataclasses.replace(mapping, positions_unit="px"))
    assert read_scan(tmp_path / "s.npy", stated).positions_px[0].tolist() == pytest.approx([10, 0.1])
