"""A model file that names code is refused before anything of it is imported, unless the user trusts it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torchptycho.cli.app import main
from torchptycho.core.config import GroupConfig, ModelConfig, RunConfig, SimulateConfig, TrainConfig
from torchptycho.core.errors import StoreError
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.interop.workflow import load_inference_bundle
from torchptycho.io import write_scan
from torchptycho.live import watch
from torchptycho.models.bundles import load_bundle, save_bundle
from torchptycho.models.checkpoints import load_checkpoint, load_network
from torchptycho.models.lightning_module import PtychoPINN
from torchptycho.models.loading import open_network
from torchptycho.reconstructors.network_reconstruction import reconstruct
from torchptycho.training.train import train

_NUMBERS = itertools.count()


class _Files:
    """A checkpoint and a bundle whose generator lies in a module that leaves a mark when it is imported."""

    def __init__(self, folder: Path) -> None:
        self.name = f"network_of_somebody_{next(_NUMBERS)}"
        self.mark, self.scan = folder / "imported", folder / "scan.npz"
        (folder / f"{self.name}.py").write_text(
            f"from pathlib import Path\nPath({str(self.mark)!r}).touch()\n"
            "from constant_generator import Constant\nclass Net(Constant):\n    pass\n"
        )
        scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=12))
        write_scan(scan, self.scan)
        config = RunConfig(group=GroupConfig(gridsize=1), model=ModelConfig(generator="constant"))
        module = PtychoPINN.for_store(prepare([scan], config, folder / "store"), config)
        module.hparams["config"]["model"]["generator"] = f"{self.name}:Net"
        self.bundle, self.checkpoint = save_bundle(module, folder / "bundle.zip"), folder / "model.ckpt"
        content: dict[str, Any] = {
            "pytorch-lightning_version": "2.6.6",
            "hyper_parameters": dict(module.hparams),
            "state_dict": module.state_dict(),
        }
        module.on_save_checkpoint(content)
        torch.save(content, self.checkpoint)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Files:
    monkeypatch.syspath_prepend(tmp_path)
    return _Files(tmp_path)


Load = Callable[[Path, _Files, dict[str, Any]], object]

LOADERS: dict[str, Load] = {
    "load_checkpoint": lambda path, files, trust: load_checkpoint(path, **trust),
    "load_network": lambda path, files, trust: load_network(path, **trust),
    "open_network": lambda path, files, trust: open_network(path, **trust),
    "reconstruct": lambda path, files, trust: reconstruct(
        path, files.scan, accelerator="cpu", progress=False, scratch=files.scan.parent, **trust
    ),
}


@pytest.mark.contract("generator.trust")
@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
@pytest.mark.parametrize("name", LOADERS)
def test_generator_of_a_file_is_imported_on_request_only(files: _Files, name: str, kind: str) -> None:
    path = getattr(files, kind)
    with pytest.raises(
        StoreError, match=rf"'generator': expected one of .*found '{files.name}:Net'.*--trust-generator"
    ):
        LOADERS[name](path, files, {})
    assert not files.mark.exists()
    with pytest.raises(StoreError, match="whose code would run"):
        LOADERS[name](path, files, {"trust_generator": "another:Net"})
    assert not files.mark.exists()
    assert LOADERS[name](path, files, {"trust_generator": True}) is not None
    assert files.mark.exists()
    assert files.name in sys.modules


@pytest.mark.contract("generator.trust")
def test_every_other_way_refuses_it_too(files: _Files, tmp_path: Path) -> None:
    ways: tuple[Callable[[], object], ...] = (
        lambda: PtychoPINN.load_from_checkpoint(files.checkpoint, weights_only=True),
        lambda: load_bundle(files.bundle),
        lambda: load_inference_bundle(files.bundle),
        lambda: watch("tcp://127.0.0.1:1", files.checkpoint, tmp_path / "live"),
        # The run's own network is another one, whose name is trusted.
        lambda: train(
            files.scan,
            RunConfig(group=GroupConfig(gridsize=1), train=TrainConfig(accelerator="cpu")),
            tmp_path / "run",
            start=files.checkpoint,
            progress=False,
        ),
    )
    for way in ways:
        with pytest.raises(StoreError, match="whose code would run"):
            way()
    assert not files.mark.exists()
    trusted = PtychoPINN.load_from_checkpoint(files.checkpoint, weights_only=True, trust_generator=f"{files.name}:Net")
    assert type(trusted.generator).__name__ == "Net"


@pytest.mark.contract("generator.trust")
def test_commands_take_it_on_request(files: _Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = (
        ["reconstruct", str(files.checkpoint), str(files.scan), "--out", str(tmp_path / "image.npz")],
        ["export", str(files.bundle), str(tmp_path / "network.onnx")],
        ["watch", "tcp://127.0.0.1:1", "--model", str(files.checkpoint), "--out", str(tmp_path / "live")],
    )
    for command in commands:
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "--trust-generator" in said
        assert said.count("\n") == 1
    assert not files.mark.exists()
    assert main([*commands[0], "--accelerator", "cpu", "--trust-generator"]) == 0
    assert files.mark.exists()


@pytest.mark.contract("generator.trust")
def test_registered_generator_needs_no_trust(tmp_path: Path) -> None:
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=12))
    for name in ("constant", "constant_generator:Constant"):
        config = RunConfig(group=GroupConfig(gridsize=1), model=ModelConfig(generator=name))
        module = PtychoPINN.for_store(prepare([scan], config, tmp_path / "store"), config)
        assert load_network(save_bundle(module, tmp_path / "bundle.zip")).config.model.generator == name
