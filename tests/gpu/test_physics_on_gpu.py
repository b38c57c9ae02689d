"""The physics on a CUDA device is that of the CPU."""

from __future__ import annotations

import pytest
import torch
from strategies import beam, normal
from tolerances import assert_close, tolerance

from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.merging import merge, merge_canvas_px, probe_weight
from torchptycho.physics.patches import extract, place
from torchptycho.stitch import Canvas

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]

CUDA = torch.device("cuda")


def scattered(count: int, extent_px: float, seed: int) -> torch.Tensor:
    """[count, 2] places in float64, some of them outside a field of the extent."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2) * extent_px


@pytest.mark.contract("physics.patches.adjoint")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_extract_is_adjoint_of_place_on_the_device(dtype: torch.dtype) -> None:
    field, patches = normal((200, 220), 1, dtype).to(CUDA), normal((300, 64, 64), 2, dtype).to(CUDA)
    corner_px = scattered(300, 200, 3).to(CUDA)
    left = (extract(field, corner_px, 64).conj() * patches).sum()
    right = (field.conj() * place(patches, corner_px, (200, 220))).sum()
    assert float((left - right).abs()) <= tolerance("double") * float(field.norm() * patches.norm())


@pytest.mark.contract("stitch.devices")
def test_canvas_is_the_same_on_cpu_and_gpu() -> None:
    patches, places, weight = normal((500, 64, 64), 4, torch.complex64), scattered(500, 300, 5), probe_weight(beam(64))
    canvases = []
    for device in (torch.device("cpu"), CUDA):
        canvas = Canvas.for_positions(places, 64, device)
        canvas.add(patches.to(device), places.to(device), weight.to(device))
        canvases.append(canvas)
    cpu, gpu = canvases
    assert gpu.weight.is_cuda
    assert_close(gpu.numerator, cpu.numerator, "devices")
    assert_close(gpu.weight, cpu.weight, "devices")
    again = Canvas.for_positions(places, 64, CUDA)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(6))
    for part in order.split(77):
        again.add(patches[part].to(CUDA), places[part].to(CUDA), weight.to(CUDA))
    assert torch.equal(again.numerator, gpu.numerator)
    assert_close(torch.from_numpy(gpu.finish().object), torch.from_numpy(cpu.finish().object), "devices")


@pytest.mark.contract("physics.devices")
def test_expected_counts_are_the_same_on_cpu_and_gpu() -> None:
    patches, probe = normal((8, 4, 64, 64), 6, torch.complex64), beam(64, 2, dtype=torch.complex64)
    assert_close(expected_counts(patches.to(CUDA), probe.to(CUDA)), expected_counts(patches, probe), "devices")


@pytest.mark.contract("physics.devices")
def test_merged_patches_are_the_same_on_cpu_and_gpu() -> None:
    patches, offset = normal((8, 4, 64, 64), 7, torch.complex64), scattered(32, 16, 8).reshape(8, 4, 2).float()
    weight, canvas_px = probe_weight(beam(64, dtype=torch.complex64)), merge_canvas_px(64, 20.0)
    merged = merge(patches.to(CUDA), offset.to(CUDA), weight.to(CUDA), canvas_px)
    assert_close(merged, merge(patches, offset, weight, canvas_px), "devices")
