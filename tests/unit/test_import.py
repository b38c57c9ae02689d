"""Importing the package and asking for help cost next to nothing, and every public name is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchptycho

HEAVY = ("torch", "lightning", "tensordict", "matplotlib", "h5py", "skimage", "scipy", "tensorflow", "keras")


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    tail = "\nimport sys\nprint('\\n' + repr(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


@pytest.mark.contract("import.light")
def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not loaded_after("import torchptycho") & {*HEAVY, "numpy", "pydantic"}


@pytest.mark.contract("import.light")
@pytest.mark.parametrize("arguments", ["['--help']", "['train', '--help']", "['trian']", "['train', 'x', '--stps']"])
def test_help_and_mistakes_import_nothing_heavy(arguments: str) -> None:
    code = f"from torchptycho.cli.app import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert not loaded_after(code) & set(HEAVY)


@pytest.mark.contract("import.light")
def test_reading_a_scan_imports_neither_torch_nor_matplotlib() -> None:
    assert not loaded_after("import torchptycho; torchptycho.read_scan") & (set(HEAVY) - {"scipy"})


@pytest.mark.contract("import.framework")
def test_training_imports_no_second_framework() -> None:
    code = "import torchptycho; torchptycho.train; torchptycho.reconstruct; torchptycho.evaluate"
    assert not loaded_after(code) & {"tensorflow", "keras", "jax"}


@pytest.mark.contract("import.names")
@pytest.mark.parametrize("name", torchptycho.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    found = getattr(torchptycho, name)
    assert name in dir(torchptycho)
    assert found.__name__ == name
    assert found.__doc__


@pytest.mark.contract("import.names")
def test_public_names_are_those_that_type_checkers_see() -> None:
    assert torchptycho.__file__ is not None
    tree = ast.parse(Path(torchptycho.__file__).read_text(encoding="utf-8"))
    seen = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(torchptycho.__all__) == seen - {None}


@pytest.mark.contract("import.names")
def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'torchptycho' has no attribute 'reconstrct'"):
        torchptycho.reconstrct  # noqa: B018
