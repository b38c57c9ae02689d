"""Every command and snippet of README and docs is run, with small scans and few steps; the reference is complete.

A page that makes its files itself (a tutorial) is listed in `PREPARED`; any other finds those of `prepared`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import pytest
from documentation_blocks import (
    ROOT,
    Block,
    Runner,
    blocks,
    check_unrun_block,
    extract_words,
    known_options,
    page_key,
    pages,
)
from matplotlib.figure import Figure
from PIL import Image

from torchptycho.core.config import (
    LogConfig,
    MappingConfig,
    RefineConfig,
    RunConfig,
    SimulateConfig,
    TrainConfig,
    to_dict,
)
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.io import write_reconstruction
from torchptycho.reconstructors.iterative import refine

sys.path.insert(0, str(ROOT / "docs" / "hooks"))
import reference

SCANS = (
    "scan.npz", "new.npz", "other.npz", "day1.npz", "day2.npz", "day3.npz", "train.npz", "test.npz", "demo/scan.npz",
    "day1/scan_0001.npz", "day1/scan_0007.npz", "day2/scan_0001.npz", "day3/scan_0042.npz", "day4/scan_0001.npz",
    "night/scan_0001.npz", "night/scan_0002.npz",
    "siemens-star-128.npz", "synth64-train.npz", "synth64-test.npz",
)  # fmt: skip
IMAGES = ("image.npz", "theirs.npz", "refined.npz", "reference.npz", "siemens-star-128-reference.npz")
PREPARED: dict[str, tuple[str, ...]] = {"docs/tutorial.md": (), "examples/first_image.ipynb": ()}
"""Pages that make their files themselves, and what they find beside that."""
ENERGY_EV, DISTANCE_M, PIXEL_M = 8000.0, 1.0, 5e-5
SMALL = SimulateConfig(n_px=32, object_px=80, n_frames=64, photons_per_frame=1e5)


@pytest.fixture(scope="session")
def prepared(tiny_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a page may begin with."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in SCANS:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_scan, folder / name)
    # The default network, which is what `train --from run` goes on with.
    from torchptycho.training.train import train

    train(tiny_scan, RunConfig(train=TrainConfig(steps=1, accelerator="cpu")), folder / "run", progress=False)
    image = refine(tiny_scan, config=RefineConfig(epochs=2))
    assert isinstance(image, Reconstruction)
    for name in IMAGES:
        write_reconstruction(image, folder / name)
    write_recorded(folder)
    return folder


def write_recorded(folder: Path) -> None:
    """scan.cxi, dark.h5, and raw.h5 with raw_positions.csv: an experiment in metres, without a probe."""
    scan = simulate(dataclasses.replace(SMALL, n_px=64, object_px=128, n_frames=40))
    places_m = write_cxi(folder / "scan.cxi", scan)
    with h5py.File(folder / "dark.h5", "w") as file:
        file["entry/data"] = np.zeros((64, 64), np.float32)
    with h5py.File(folder / "raw.h5", "w") as file:
        file["entry/data/data"] = np.asarray(scan.frames[:])
        file["entry/energy"], file["entry/distance"], file["entry/pixel"] = ENERGY_EV / 1e3, DISTANCE_M, PIXEL_M
    rows = [f"{y * 1e6:.9f},{x * 1e6:.9f}" for y, x in places_m]
    (folder / "raw_positions.csv").write_text("\n".join(["y_um,x_um", *rows]) + "\n", encoding="utf-8")


def write_cxi(path: Path, scan: Scan) -> np.ndarray:
    """The scan as a detector in metres would record it; returns its positions in metres."""
    energy_J = ENERGY_EV * 1.602176634e-19
    wavelength_m = 1.239841984332002e-06 / ENERGY_EV
    places_m = np.asarray(scan.positions_px) * wavelength_m * DISTANCE_M / (scan.n_px * PIXEL_M)
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["data"], detector["distance"] = np.asarray(scan.frames[:]), DISTANCE_M
        detector["x_pixel_size"], detector["y_pixel_size"] = PIXEL_M, PIXEL_M
        file["entry_1/instrument_1/source_1/energy"] = energy_J
        # The sample's motion, (x, y, z).
        file["entry_1/sample_1/geometry_1/translation"] = np.pad(-places_m[:, ::-1], ((0, 0), (0, 1)))
        file["entry_1/data_1/translation"] = h5py.SoftLink("/entry_1/sample_1/geometry_1/translation")
    return places_m


def smaller(config: Any) -> Any:
    """The same configuration with next to nothing to do."""
    if isinstance(config, SimulateConfig):
        return dataclasses.replace(
            config, n_px=32, object_px=80, n_frames=min(config.n_frames, 64), probe_diameter_px=None
        )
    if isinstance(config, RefineConfig):
        return dataclasses.replace(config, epochs=min(config.epochs, 2), position_start_epoch=0)
    if isinstance(config, TrainConfig):
        steps = max(1, config.steps // 400)  # --resume with more steps still has some to go
        return dataclasses.replace(config, steps=steps, epochs=config.epochs and 1, accelerator="cpu", compile=False)
    if isinstance(config, RunConfig):
        return dataclasses.replace(
            config,
            train=smaller(config.train),
            refine=smaller(config.refine),
            model=dataclasses.replace(config.model, start_projections=1, finish_projections=0),
            prepare=dataclasses.replace(config.prepare, bootstrap_probe=min(1, config.prepare.bootstrap_probe)),
        )
    return config


def with_less_to_do(function: Callable[..., Any], name: str, default: Any) -> Callable[..., Any]:
    """`function`, called with a smaller argument `name`; it is `default` where the caller says nothing."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def small(*args: Any, **values: Any) -> Any:
        bound = signature.bind(*args, **values)
        bound.arguments[name] = smaller(bound.arguments.get(name) or default)
        return function(*bound.args, **bound.kwargs)

    return small


@pytest.fixture
def less_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes a step or two, refinement two epochs, a simulation 64 frames of 32x32, and a picture is one pixel;
    all else is as written."""
    import torchptycho.data.simulation
    import torchptycho.reconstructors.orientation
    import torchptycho.reconstructors.resolution
    import torchptycho.training.train

    replaced = {
        torchptycho.training.train.train: with_less_to_do(torchptycho.training.train.train, "config", RunConfig()),
        refine: with_less_to_do(refine, "config", RefineConfig()),
        simulate: with_less_to_do(simulate, "config", SimulateConfig()),
    }
    for module in [module for name, module in sys.modules.items() if name.startswith("torchptycho")]:
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in replaced:
                monkeypatch.setattr(module, name, replaced[value])
    # Drawing takes most of the time, and other tests look at the pictures.
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Image.new("L", (1, 1)).save(path, "PNG"))
    trainer = L.Trainer.__init__

    def short(self: L.Trainer, *args: Any, **values: Any) -> None:
        trainer(self, *args, **values | ({"max_epochs": 1} if values.get("max_epochs", 1) > 1 else {}))

    monkeypatch.setattr(L.Trainer, "__init__", short)


def ids(page: Path) -> str:
    return page_key(page)


@pytest.mark.contract("docs.commands")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("less_to_do")
@pytest.mark.parametrize("page", pages(), ids=ids)
def test_every_block_of_the_page_runs(
    page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = PREPARED.get(page_key(page))
    folder = tmp_path / "here"
    if only is None:
        shutil.copytree(prepared, folder)
        # Commands do not overwrite: a page that makes an image does not find one of its name.
        for name in IMAGES:
            if f"--out {name}" in page.read_text(encoding="utf-8"):
                (folder / name).unlink()
    else:
        folder.mkdir()
        for name in only:
            shutil.copy(prepared / name, folder / name)
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    runner, printed = Runner(), ""
    for block in blocks(page):
        where = f"{page_key(page)}:{block.line}"
        if block.not_run is not None:
            assert len(block.not_run) > 8, f"{where}: a block that is not run says why"
            check_unrun_block(block)
            printed = ""
        elif block.language == "mermaid":
            continue
        elif block.language == "text":
            missing = extract_words(block.text) - extract_words(printed)
            assert not (printed and missing), f"{where}: the commands before it do not print {sorted(missing)}"
        else:
            try:
                printed = runner.run(block)
            except BaseException as error:
                error.add_note(f"in {where}:\n{block.text}")
                raise


@pytest.mark.contract("docs.commands")
def test_blocks_are_of_a_known_language() -> None:
    from documentation_blocks import LANGUAGES

    for page in pages():
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{page_key(page)}:{block.line}: name the language of the block"


@pytest.mark.contract("docs.commands")
@pytest.mark.parametrize(
    ("block", "words"),
    [
        (Block(1, "sh", "torchptycho train scan.npz --out run --stps 3"), "exit code"),
        (Block(1, "sh", "torchptycho trian scan.npz"), "exit code"),
        (Block(1, "sh", "rm -rf run"), "neither run nor marked"),
        (Block(1, "sh", "torchptycho --help | less"), "more of a shell"),
        (Block(1, "python", "import torchptycho as tp\ntp.trian"), "trian"),
        (Block(1, "yaml", "train: {stps: 3}"), "steps"),
    ],
)
def test_a_wrong_block_is_found(
    block: Block, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=words):
        Runner().run(block)


@pytest.mark.contract("docs.commands")
@pytest.mark.parametrize(
    "text",
    [
        "srun torchptycho train scan.npz --out run --devces 4",
        "make dmo",
        "pip install '.[tensorbord]'",
        "torchrun --nproc-per-node 4 examples/train.py",
    ],
)
def test_a_wrong_block_that_is_not_run_is_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_unrun_block(Block(1, "sh", text, not_run="it needs another machine"))


@pytest.mark.contract("docs.commands")
def test_output_that_is_not_printed_is_found() -> None:
    printed = "run/best.ckpt: trained in 263 s, amplitude_mae 0.0168"
    assert not extract_words("run/best.ckpt: trained in ... s, amplitude_mae 0.2") - extract_words(printed)
    assert extract_words("trained with phase_mae 0.2") - extract_words(printed) == {"with", "phase_mae"}


@pytest.mark.contract("docs.commands")
def test_options_named_in_the_text_are_there() -> None:
    known = known_options() | {"--help", "--version", "--debug", "--no-smooth", "--smooth"}
    for page in pages():
        if page.suffix == ".md":
            for option in re.findall(r"`[^`\n]*?(?<![\w-])(--[a-zA-Z][a-zA-Z0-9-]*)", prose(page)):
                assert option in known, f"{page_key(page)}: no command has {option}"


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.contract("docs.links")
def test_links_lead_to_files_that_are_there() -> None:
    written = {ROOT / "docs" / name for name in reference.PAGES}
    others = [*(ROOT / "specs").glob("*.md"), ROOT / "benchmarks" / "results" / "README.md", ROOT / "CHANGELOG.md"]
    for page in [page for page in pages() if page.suffix == ".md"] + others:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page)):
            if "://" in target or target.startswith("mailto:"):
                continue
            path = (page.parent / target).resolve()
            assert path.exists() or path in written, f"{page_key(page)}: {target} leads nowhere"


@pytest.mark.contract("docs.links")
def test_the_site_contains_what_its_pages_link_to() -> None:
    assignments = ast.parse((ROOT / "docs" / "hooks" / "site.py").read_text(encoding="utf-8")).body
    (outside,) = (
        ast.literal_eval(node.value)
        for node in assignments
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_OUTSIDE"
    )
    shown = {path for pattern in outside for path in ROOT.glob(pattern)} | {
        ROOT / "docs" / name for name in reference.PAGES
    }
    on_site = [page for page in pages() if page.suffix == ".md"] + [path for path in shown if path.suffix == ".md"]
    for page in on_site:
        text = prose(page) if page.exists() else ""
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" in target or target.startswith("mailto:"):
                continue
            path = (page.parent / target).resolve()
            assert path in shown or (ROOT / "docs") in path.parents, (
                f"{page_key(page)}: {target} is not on the site; name it in docs/hooks/site.py"
            )


def table_rows(text: str) -> dict[str, dict[str, list[str]]]:
    """Cells of the row of each key, by section."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif key := re.match(r"^\| `(\w+)`", line):
            found.setdefault(section, {})[key[1]] = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return found


def as_written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


@pytest.mark.contract("docs.configuration")
def test_configuration_reference_names_every_key_with_its_default() -> None:
    rows = table_rows(reference.configuration())
    wanted = to_dict(RunConfig())
    wanted["simulation"] = to_dict(SimulateConfig())
    for section, values in wanted.items():
        assert set(rows[section]) == set(values), section
        for key, value in values.items():
            _, takes, default, meaning = rows[section][key]
            assert takes, f"{section}.{key}"
            assert default == ("none" if value is None else f"`{as_written(value)}`"), f"{section}.{key}"
            assert len(meaning) > 5, f"{section}.{key} has no docstring"
    mapping = {field.name for field in dataclasses.fields(MappingConfig)}
    assert set(rows["prepare.mapping"]) == mapping


@pytest.mark.contract("docs.configuration")
@pytest.mark.parametrize(
    ("section", "key", "takes"),
    [
        ("group", "gridsize", "integer ≥ 1, ≤ 5"),
        ("refine", "step", "number > 0, &lt; 2"),
        ("refine", "n_modes", "integer ≥ 1, ≤ 64 or none"),
        ("prepare", "crop_px", "integer ≥ 2, multiple of 2 or none"),
        ("train", "precision", "`32-true`, `bf16-mixed`, `16-mixed`"),
        ("prepare", "beam_center_px", "2 times number or `estimated` or none"),
        ("group", "bounds", "4 times number ≥ 0, ≤ 1"),
        ("log", "logger", "list of `tensorboard`, `mlflow`, `wandb`"),
    ],
)
def test_configuration_reference_has_the_limits(section: str, key: str, takes: str) -> None:
    assert table_rows(reference.configuration())[section][key][1] == takes


@pytest.mark.contract("docs.configuration")
def test_docstrings_of_inherited_keys_are_found() -> None:
    assert reference.documented(LogConfig)["image_patches"].startswith("Number of patches in these images")
    assert set(reference.documented(type(RunConfig().prepare))) == set(to_dict(RunConfig().prepare))


@pytest.mark.contract("docs.configuration")
def test_commands_and_python_are_complete() -> None:
    import torchptycho
    from torchptycho.cli.command_table import COMMANDS

    told = reference.commands()
    for name in COMMANDS:
        help_text = told.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert f"usage: torchptycho {name}" in help_text
    listed = re.findall(r"^::: torchptycho\.[\w.]*?(\w+)$", reference.api(), re.MULTILINE)
    assert sorted(listed) == sorted(torchptycho.__all__)


@pytest.mark.contract("docs.configuration")
def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in [path.name for path in (ROOT / "docs").glob("*.md")] + list(reference.PAGES):
        assert f": {page}" in navigation, f"{page} is not in the navigation of mkdocs.yml"


def test_notebooks_carry_no_output() -> None:
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{notebook.name}: clear the outputs"
