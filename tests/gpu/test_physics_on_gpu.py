"""The physics and the canvas on a CUDA device are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from emulated_cuda import EmulatedGpu
from strategies import make_asymmetric_probe, normal
from tolerances import assert_close, relative_l2, tolerance

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.physics.diffraction import expected_counts
from torchptycho.physics.overlap import merge, merge_canvas_px, probe_weight
from torchptycho.physics.patches import extract, place
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.growing_canvas import GrowingCanvas
from torchptycho.reconstructors.phase_sync import synchronize_phases
from torchptycho.reconstructors.stitcher import PatchStitcher

pytestmark = pytest.mark.gpu


def scattered(count: int, extent_px: float, seed: int) -> torch.Tensor:
    """[count, 2] places in float64, some of them outside a field of the extent."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2) * extent_px


@pytest.mark.contract("physics.patches.adjoint")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_extract_is_adjoint_of_place_on_the_device(cuda: torch.device, dtype: torch.dtype) -> None:
    field, patches = normal((200, 220), 1, dtype).to(cuda), normal((100, 32, 32), 2, dtype).to(cuda)
    corner_px = scattered(100, 200, 3).to(cuda)
    left = (extract(field, corner_px, 32).conj() * patches).sum()
    right = (field.conj() * place(patches, corner_px, (200, 220))).sum()
    assert float((left - right).abs()) <= tolerance("double") * float(field.norm() * patches.norm())


@pytest.mark.contract("stitch.devices")
def test_canvas_is_the_same_on_cpu_and_gpu(cuda: torch.device) -> None:
    patches, places, weight = (
        normal((500, 32, 32), 4, torch.complex64),
        scattered(500, 150, 5),
        probe_weight(make_asymmetric_probe(32)),
    )
    canvases = []
    for device in (torch.device("cpu"), cuda):
        canvas = Canvas.for_positions(places, 32, device)
        canvas.add(patches.to(device), places.to(device), weight.to(device))
        canvases.append(canvas)
    cpu, gpu = canvases
    assert gpu.weight.is_cuda
    assert_close(gpu.numerator, cpu.numerator, "devices")
    assert_close(gpu.weight, cpu.weight, "devices")
    again = Canvas.for_positions(places, 32, cuda)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(6))
    for part in order.split(77):
        again.add(patches[part].to(cuda), places[part].to(cuda), weight.to(cuda))
    assert torch.equal(again.numerator, gpu.numerator)
    assert_images_close(gpu.finish(), cpu.finish())


def assert_images_close(one: Reconstruction, other: Reconstruction) -> None:
    assert_close(torch.from_numpy(one.object), torch.from_numpy(other.object), "devices")
    assert_close(torch.from_numpy(one.coverage), torch.from_numpy(other.coverage), "devices")
    assert one.spread is not None
    assert other.spread is not None
    # A difference of two sums that are nearly the same.
    assert relative_l2(torch.from_numpy(one.spread), torch.from_numpy(other.spread)) < 1e-4


@pytest.mark.contract("stitch.devices")
def test_canvases_grow_and_add_and_are_told_on_the_device(cuda: torch.device) -> None:
    patches, places = normal((60, 16, 16), 4, torch.complex64), scattered(60, 90, 5)
    weights = torch.rand(60, 16, 16, generator=torch.Generator().manual_seed(7))
    patches[7, 3, 3], places[11] = float("nan"), float("inf")
    images, placed = [], []
    for device in (torch.device("cpu"), cuda):
        halves = [GrowingCanvas(device, tile_px=16, largest_px=256) for _ in range(2)]
        for half, rows in zip(halves, (slice(0, 30), slice(30, None)), strict=True):
            placed.append(half.add(patches[rows].to(device), places[rows].to(device), weights[rows].to(device)))
        whole = (halves[0] + halves[1]).crop()
        pasted = Canvas(whole.shape, whole.origin_px, device)
        for half in halves:
            pasted.paste(Canvas.from_sums(half.crop().to_sums(), device))
        assert torch.equal(pasted.numerator, whole.numerator)
        images.append((pasted + Canvas(whole.shape, whole.origin_px, device)).finish())
    assert torch.equal(torch.cat(placed[:2]), torch.cat(placed[2:]).cpu())
    assert_images_close(images[1], images[0])


@pytest.mark.contract("stitch.pieces")
def test_many_patches_are_placed_in_pieces(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    place = Canvas._place

    def counted(canvas: Canvas, patches: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        taken.append(len(patches))
        return place(canvas, patches, *rest)

    monkeypatch.setattr(Canvas, "_place", counted)
    patches, places = normal((70, 256, 256), 4, torch.complex64).to(cuda), scattered(70, 60, 5).to(cuda)
    Canvas.for_positions(places, 256, cuda).add(patches, places, torch.ones(256, 256, device=cuda))
    assert taken == [64, 6]


@pytest.mark.contract("stitch.deterministic")
def test_canvases_take_deterministic_algorithms_only(cuda: torch.device) -> None:
    patches, places = normal((60, 16, 16), 4, torch.complex64).to(cuda), scattered(60, 90, 5).to(cuda)
    canvases = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            canvases.append(GrowingCanvas(cuda))
            canvases[-1].add(patches, places, torch.ones(16, 16, device=cuda))
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(canvases[0].numerator, canvases[1].numerator)


@pytest.mark.contract("stitch.devices")
def test_a_patch_outside_is_refused_on_the_device(cuda: torch.device) -> None:
    canvas = Canvas.for_positions(torch.zeros(1, 2), 16, cuda)
    patches, places = normal((2, 16, 16), 4).to(cuda), torch.tensor([[0.0, 0.0], [40.0, 0.0]], device=cuda)
    with pytest.raises(ValueError, match="1 patches fall outside the canvas"):
        canvas.add(patches, places, torch.ones(16, 16, device=cuda))


@pytest.mark.contract("stitch.devices")
@pytest.mark.parametrize("agree_phases", [True, False])
def test_a_mosaic_is_the_same_on_cpu_and_gpu(cuda: torch.device, agree_phases: bool) -> None:
    patches, places, weight = (
        normal((40, 16, 16), 4, torch.complex64),
        scattered(40, 60, 5),
        probe_weight(make_asymmetric_probe(16)),
    )
    patches[9] = float("nan")
    members = torch.arange(40).reshape(10, 4)
    is_first = torch.ones(10, 4, dtype=torch.bool)
    # A frame that fills a group and has come before.
    members[9, 3], is_first[9, 3] = 0, False
    found = []
    for device in (torch.device("cpu"), cuda):
        mosaic = PatchStitcher(places[:39], weight.float().to(device), agree_phases=agree_phases)
        for part in (slice(0, 4), slice(4, 10)):
            mosaic.add(
                patches.reshape(10, 4, 16, 16)[part].to(device), members[part].to(device), is_first[part].to(device)
            )
        found.append(mosaic.finish().finish())
        assert mosaic.left_out == [9]
        assert mosaic.n_placed == 38
    assert_images_close(found[1], found[0])


@pytest.mark.contract("phases.devices")
@pytest.mark.parametrize("one_weight", [True, False])
@pytest.mark.parametrize("positions_there", [True, False])
def test_phases_are_the_same_on_cpu_and_gpu(cuda: torch.device, one_weight: bool, positions_there: bool) -> None:
    patches, places = normal((40, 16, 16), 4, torch.complex64), scattered(40, 60, 5)
    weight = torch.rand(*(() if one_weight else (40,)), 16, 16, generator=torch.Generator().manual_seed(7))
    group = torch.arange(40) // 4
    here = synchronize_phases(patches, places, weight, group)
    there = synchronize_phases(
        patches.to(cuda), places.to(cuda) if positions_there else places, weight.to(cuda), group.to(cuda)
    )
    assert there.is_cuda
    assert relative_l2(there, here) < 1e-4


@pytest.mark.contract("phases.devices")
def test_a_gpu_is_waited_for_as_often_for_many_patches_as_for_few(machine: EmulatedGpu) -> None:
    n_syncs = []
    for count in (20, 200):
        patches, places = normal((count, 16, 16), 4, torch.complex64).to("cuda"), scattered(count, 60, 5)
        before = machine.n_syncs
        synchronize_phases(patches, places, torch.ones(16, 16, device="cuda"), torch.arange(count))
        n_syncs.append(machine.n_syncs - before)
    assert n_syncs[0] == n_syncs[1]


@pytest.mark.contract("physics.devices")
def test_expected_counts_are_the_same_on_cpu_and_gpu(cuda: torch.device) -> None:
    patches, probe = normal((8, 4, 64, 64), 6, torch.complex64), make_asymmetric_probe(64, 2, dtype=torch.complex64)
    assert_close(expected_counts(patches.to(cuda), probe.to(cuda)), expected_counts(patches, probe), "devices")


@pytest.mark.contract("physics.devices")
def test_merged_patches_are_the_same_on_cpu_and_gpu(cuda: torch.device) -> None:
    patches, offset = normal((8, 4, 64, 64), 7, torch.complex64), scattered(32, 16, 8).reshape(8, 4, 2).float()
    weight, canvas_px = probe_weight(make_asymmetric_probe(64, dtype=torch.complex64)), merge_canvas_px(64, 20.0)
    merged = merge(patches.to(cuda), offset.to(cuda), weight.to(cuda), canvas_px)
    assert_close(merged, merge(patches, offset, weight, canvas_px), "devices")
