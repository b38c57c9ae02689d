"""The stand-in for a GPU: it computes what the CPU does, and refuses what CUDA refuses."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedGpu, EmulatedTensor, emulated_cuda
from strategies import normal
from torch import Tensor

from torchptycho.physics.group_patches import extract_groups, place_groups

THERE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def machine() -> Iterator[EmulatedGpu]:
    with emulated_cuda() as found:
        yield found


def here(shape: tuple[int, ...] = (3, 4)) -> Tensor:
    return normal(shape, 1, torch.float64)


def there(shape: tuple[int, ...] = (3, 4)) -> Tensor:
    return here(shape).to("cuda")


MIXED: dict[str, Callable[[], object]] = {
    "a product": lambda: there() * here(),
    "the other way round": lambda: here() + there((4,)),
    "a number there, many here": lambda: here() * there(()),
    "in place": lambda: there().add_(here()),
    "in place here": lambda: here().add_(there()),
    "a number here that is changed": lambda: here(()).add_(there(())),
    "an output": lambda: torch.add(there(), there(), out=here()),
    "a concatenation": lambda: torch.cat([there(), here()]),
    "a stack of numbers": lambda: torch.stack([there(()), here(())]),
    "a matrix product": lambda: there((3, 3)) @ here((3, 3)),
    "a choice": lambda: torch.where(here() > 0, there(), 0.0),
    "a mask": lambda: there() * (here() > 0),
    "a sum by index": lambda: there((4,)).scatter_add_(0, torch.arange(4), there((4,))),
    "rows by number": lambda: there().index_select(0, torch.arange(2)),
    "rows of a tensor here": lambda: here()[torch.arange(2, device="cuda")],
    "a mask of a tensor here": lambda: here()[there() > 0],
    "values that are set": lambda: there().__setitem__(torch.arange(2), here((2, 4))),
    "values that are set here": lambda: here().__setitem__(torch.arange(2), there((2, 4))),
    "a convolution": lambda: torch.nn.functional.conv1d(there((1, 1, 8)), here((1, 1, 3))),
    "a module here": lambda: torch.nn.Linear(4, 2, dtype=torch.float64)(there()),
    "a module there": lambda: torch.nn.Linear(4, 2, dtype=torch.float64).to("cuda")(here()),
    "a new tensor of numbers": lambda: there() - here().new_tensor([1.0, 2.0, 3.0, 4.0]),
    "an optimiser's gradient": lambda: there().lerp_(here(), 0.5),
    "the generator of another device": lambda: torch.poisson(there().abs(), torch.Generator()),
    "a generator there": lambda: torch.rand(2, generator=torch.Generator("cuda")),
    "a factory's generator": lambda: torch.randperm(4, generator=torch.Generator(), device="cuda"),
}


@pytest.mark.parametrize("what", MIXED)
def test_tensors_of_two_devices_do_not_meet(what: str) -> None:
    with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
        MIXED[what]()


ALLOWED: dict[str, Callable[[], Tensor]] = {
    "a number of the CPU": lambda: there() * here(()),
    "a number set by an index": lambda: _set(there(), here(())),
    "an index of the CPU": lambda: there()[torch.arange(2)],
    "a mask of the CPU": lambda: there()[here() > 0],
    "a copy": lambda: there().copy_(here() + 1),
    "a slice that is set": lambda: _set(there(), here((2, 4)), slice(2)),
    "another type": lambda: there().to(torch.float32),
    "like another": lambda: here().to(there(), copy=True),
    "made like one there": lambda: torch.zeros_like(there()),
    "made by one there": lambda: there().new_zeros(3),
    "numbers for one there": lambda: there().new_tensor([1, 2, 3]),
}


def _set(values: Tensor, what: Tensor, where: object = 0) -> Tensor:
    values[where if isinstance(where, slice) else torch.tensor([where])] = what
    return values


@pytest.mark.parametrize("what", ALLOWED)
def test_what_cuda_allows_is_allowed_and_stays_there(what: str) -> None:
    found = ALLOWED[what]()
    assert isinstance(found, EmulatedTensor)
    assert found.device == THERE
    assert found.is_cuda


def test_numbers_are_not_read_from_outside() -> None:
    for read in (lambda: there().numpy(), lambda: np.asarray(there()), lambda: np.add(there(), 1)):
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            read()
    with pytest.raises(RuntimeError, match="pin"):
        there().pin_memory()
    with pytest.raises(AssertionError, match="not waited for"):
        there().to("cpu", non_blocking=True)
    assert np.array_equal(there().cpu().numpy(), here().numpy())
    assert there().tolist() == here().tolist()
    assert f"{there(()):.3f}" == f"{here(()):.3f}"


def test_wide_unsigned_integers_are_moved_and_converted_only() -> None:
    counts = torch.arange(6).to(torch.uint16).reshape(2, 3).to("cuda")
    assert counts[1:].float().tolist() == [[3.0, 4.0, 5.0]]
    for fault in (lambda: counts * 2, lambda: counts[torch.tensor([0])], lambda: counts.sum()):
        with pytest.raises(NotImplementedError, match="unsigned"):
            fault()


def test_what_has_no_deterministic_algorithm_is_refused_where_it_matters() -> None:
    assert there().median(0).values.shape == (4,)
    torch.use_deterministic_algorithms(True)
    try:
        for fault in (lambda: there().median(0), lambda: there().cumsum(0)):
            with pytest.raises(RuntimeError, match="deterministic"):
                fault()
    finally:
        torch.use_deterministic_algorithms(False)


def test_another_gpu_is_not_there() -> None:
    with pytest.raises(RuntimeError, match="ordinal"):
        torch.zeros(1, device="cuda:1")


@pytest.mark.parametrize(
    "make",
    [
        lambda device: torch.zeros(2, 3, device=device),
        lambda device: torch.full((2,), 0.5, device=device),
        lambda device: torch.arange(5, device=device),
        lambda device: torch.linspace(0, 1, 5, device=device),
        lambda device: torch.eye(3, device=device),
        lambda device: torch.tensor([1.0, 2.0], device=device),
        lambda device: torch.as_tensor(np.ones(3), device=device),
        lambda device: torch.ones_like(here(), device=device),
        lambda device: here().new_ones((2,), device=device),
    ],
)
def test_factories_make_the_same_there(make: Callable[[str], Tensor]) -> None:
    assert make("cuda").device == THERE
    assert make("cpu").device.type == "cpu"
    assert torch.equal(make("cuda").cpu(), make("cpu"))


def test_views_share_memory_and_changes_in_place_are_seen() -> None:
    values = there()
    row, parts = values[1], torch.view_as_complex(values.reshape(3, 2, 2))
    row += 1
    parts.imag.zero_()
    torch.mul(values[2], 2, out=values[0])
    expected = here()
    expected[1] += 1
    expected[:, 1::2] = 0
    expected[0] = 2 * expected[2]
    assert torch.equal(values.cpu(), expected)
    assert row.stride() == (1,)
    assert values.T.stride() == (1, 4)
    assert copy.deepcopy(values).sub_(values).count_nonzero() == 0
    assert there().add_(1) is not None


def test_conjugates_are_numbers() -> None:
    values = normal((3, 4), 2).to("cuda")
    assert torch.equal(
        torch.view_as_real(values.conj()).cpu(), torch.view_as_real(normal((3, 4), 2).conj().resolve_conj())
    )


def test_gradients_are_those_of_the_cpu_and_lie_there() -> None:
    patches, corner_px = normal((2, 3, 8, 8), 3), 4 * torch.rand(2, 3, 2, dtype=torch.float64)
    found = {}
    for device in ("cpu", "cuda"):
        start = patches.clone().requires_grad_()
        weight = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.float64, device=device))
        field = place_groups(start.to(device) * weight, corner_px.to(device), 16)
        again = extract_groups(field.abs().square() * field, corner_px.to(device), 8)
        again.abs().square().sum().backward()
        assert start.grad is not None
        assert weight.grad is not None
        assert weight.grad.device == weight.device
        assert start.grad.device.type == "cpu"
        found[device] = start.grad, weight.grad.cpu()
    assert all(torch.equal(one, other) for one, other in zip(found["cpu"], found["cuda"], strict=True))


def test_a_module_moves_and_its_parameters_stay_the_same_objects() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.SiLU())
    apart = copy.deepcopy(module)
    before = list(module.parameters())
    module.to("cuda")
    assert all(one is other and one.is_cuda for one, other in zip(before, module.parameters(), strict=True))
    image = torch.rand(2, 1, 8, 8)
    for one, where in ((module, "cuda"), (apart, "cpu")):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            one(image.to(where)).square().mean().backward()
            optimizer.step()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    module.to("cpu")
    for name, value in apart.state_dict().items():
        assert type(module.state_dict()[name]) is Tensor
        assert torch.equal(module.state_dict()[name], value)
        assert torch.equal(read[name], value)


def test_half_precision_is_that_of_the_cpu() -> None:
    module = torch.nn.Linear(4, 2).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert module(torch.ones(3, 4, device="cuda")).dtype == torch.bfloat16
    assert module(torch.ones(3, 4, device="cuda")).dtype == torch.float32


def test_views_in_inference_mode_are_of_the_tensor_that_they_show() -> None:
    outside = there()
    with torch.inference_mode():
        assert not outside[1:].is_inference()
        assert (outside + 1).is_inference()
        outside[0] = 0
    assert outside[0].count_nonzero() == 0


def test_it_counts_how_often_the_host_waits(machine: EmulatedGpu) -> None:
    values, mask = there(), torch.tensor([True, False, True])
    assert machine.n_syncs == 1
    values.mul_(2).sum()
    values[1:] @ values.T
    torch.zeros(3, device="cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert machine.n_syncs == 1
    bool((values > 0).any())
    values.cpu()
    values[mask]
    values.new_tensor([1, 2])
    values[torch.tensor([1])]
    assert machine.n_syncs == 6


def test_all_is_as_it_was_afterwards() -> None:
    before = torch.Generator, torch.autocast, torch.cuda.is_available, torch.autograd._engine_run_backward
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with emulated_cuda():
        pass
    assert (torch.Generator, torch.autocast, torch.cuda.is_available, torch.autograd._engine_run_backward) == before
    assert torch.__future__.get_swap_module_params_on_conversion() == swaps
