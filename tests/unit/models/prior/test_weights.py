"""The file of weights, and the weights that come with the package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
import torch
from tolerances import relative_l2

from torchptycho.core.errors import StoreError
from torchptycho.models.prior import PriorConfig, PriorNetwork, load_prior, save_prior

SMALL = PriorConfig(widths=(8, 16), deepest_blocks=1, max_correction=5.0)


@pytest.mark.contract("prior.file")
def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    network = PriorNetwork(SMALL)
    prior = load_prior(save_prior(network, tmp_path / "prior.safetensors", {"seed": 5}))
    assert prior.network.config == SMALL
    assert prior.report == {"seed": 5}
    assert not prior.network.training
    for name, value in network.state_dict().items():
        assert relative_l2(prior.network.state_dict()[name], value) < 1e-3


@pytest.mark.contract("prior.file.refused")
@pytest.mark.parametrize("fault", ["missing", "text", "cut", "other format", "other network"])
def test_other_files_are_refused_by_name(fault: str, tmp_path: Path) -> None:
    import safetensors.torch

    path = save_prior(PriorNetwork(SMALL), tmp_path / "prior.safetensors", {})
    if fault == "missing":
        path.unlink()
    elif fault == "text":
        path.write_text("weights")
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "other format":
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(3)}))
    else:
        tensors = safetensors.torch.load(path.read_bytes())
        tensors.pop("head.weight")
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(StoreError, match=r"prior\.safetensors: (expected|damaged)"):
        load_prior(path)


@pytest.mark.contract("prior.shipped")
def test_the_package_loads_the_weights_that_it_ships() -> None:
    prior = load_prior()
    file = importlib.resources.files("torchptycho.models.prior").joinpath("prior.safetensors")
    data = file.read_bytes()
    assert len(data) <= 4 * 2**20
    import hashlib

    assert prior.sha256 == hashlib.sha256(data).hexdigest()
    report = prior.report
    assert report["parameters"] == sum(p.numel() for p in prior.network.parameters())
    assert report["step"] > 0
    assert report["pair_seed"] == report["training"]["seed"]
    assert report["versions"]["torchptycho"]
    assert report["validation"] < 1
    assert load_prior() is prior


@pytest.mark.contract("prior.held-out.shipped")
def test_the_shipped_weights_never_saw_what_is_held_out() -> None:
    from torchptycho.data.simulation.textures import HELD_OUT_FAMILIES, TRAINING_FAMILIES

    report = load_prior().report
    assert set(report["held_out_families"]) == set(HELD_OUT_FAMILIES)
    assert set(report["families"]) == set(TRAINING_FAMILIES)


@pytest.mark.contract("prior.shipped.denoises")
def test_the_shipped_prior_removes_noise_from_a_disc() -> None:
    from torchptycho.models.prior import apply_prior

    y, x = torch.meshgrid(*[torch.arange(96.0) - 48] * 2, indexing="ij")
    truth = torch.where(torch.hypot(y, x) < 25, 0.6 * torch.exp(torch.tensor(0.8j)), torch.ones((), dtype=torch.cfloat))
    noise = torch.randn(96, 96, 2, generator=torch.Generator().manual_seed(1)) * 0.1
    noisy = truth + torch.view_as_complex(noise)
    found = apply_prior(load_prior().network, noisy, torch.full((96, 96), 0.1))
    assert relative_l2(found, truth) < 0.6 * relative_l2(noisy, truth)
