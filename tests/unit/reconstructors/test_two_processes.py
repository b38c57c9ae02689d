"""Canvases and stitchers of two processes that each have a part of the patches: the image is that of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strategies import normal
from torch import Tensor, distributed

from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.growing_canvas import GrowingCanvas
from torchptycho.reconstructors.stitcher import PatchStitcher

N, COUNT, BAD = 8, 24, 20
WEIGHT = 0.1 + normal((N, N), 7, torch.float64).square().float()
POSITIONS_PX = 20 * torch.rand(COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MEMBERS = torch.arange(COUNT).reshape(6, 4)


def make_patches() -> Tensor:
    """Groups of four patches, each group with a phase of its own, and one patch that is not finite."""
    patches = 1 + 0.2 * normal((COUNT, N, N), 3, torch.complex64)
    patches = patches * torch.polar(torch.ones(COUNT), 0.9 * (torch.arange(COUNT) // 4).float())[:, None, None]
    patches[BAD] = float("nan")
    return patches


def stitch(patches: Tensor, groups: list[int], *, agree_phases: bool, shared: Path | None = None) -> PatchStitcher:
    stitcher = PatchStitcher(POSITIONS_PX, WEIGHT, agree_phases=agree_phases, shared=shared)
    for group in groups:
        members = MEMBERS[group][None]
        stitcher.add(patches[members], members, torch.ones(1, 4, dtype=torch.bool), first_group=group)
    return stitcher


def summarize(canvas: Canvas) -> dict[str, Tensor]:
    return {
        "numerator": canvas.numerator.clone(),
        "weight": canvas.weight.clone(),
        "origin_px": torch.tensor(canvas.origin_px),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes has in the end; they are started once, because that takes seconds."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "patches").write_bytes(bytes(COUNT * N * N * 8))
    torch.multiprocessing.spawn(_run_one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _run_one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    patches, results = make_patches(), {}
    for agree_phases in (True, False):
        groups = ([0, 1, 5], [4, 2, 3])[rank]
        stitcher = stitch(patches, groups, agree_phases=agree_phases, shared=Path(folder) / "patches")
        # Patches of the other process are read from the file.
        distributed.barrier()
        results[f"stitcher {agree_phases}"] = summarize(stitcher.finish()) | {
            "n_placed": torch.tensor(stitcher.n_placed),
            "left_out": torch.tensor(stitcher.left_out),
        }
    own = slice(7 * rank, 7 if rank == 0 else None)
    empty = GrowingCanvas(tile_px=16)
    empty.all_reduce()
    if rank == 0:
        empty.add(patches[:1], POSITIONS_PX[:1], WEIGHT)
    empty.all_reduce()
    growing, known = GrowingCanvas(tile_px=16), Canvas.for_positions(POSITIONS_PX, N)
    for canvas in (growing, known):
        canvas.add(patches[own], POSITIONS_PX[own], WEIGHT)
        canvas.all_reduce()
    results |= {"growing": summarize(growing.crop()), "known": summarize(known), "first": summarize(empty.crop())}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def assert_same(found: dict[str, Tensor], expected: Canvas) -> None:
    assert torch.equal(found["numerator"], expected.numerator)
    assert torch.equal(found["weight"], expected.weight)
    assert tuple(found["origin_px"].tolist()) == expected.origin_px


@pytest.mark.contract("stitch.reduce")
def test_two_processes_have_the_canvas_of_one(results: list[dict[str, dict[str, Tensor]]]) -> None:
    patches = make_patches()
    whole = Canvas.for_positions(POSITIONS_PX, N)
    whole.add(patches, POSITIONS_PX, WEIGHT)
    grown = GrowingCanvas(tile_px=16)
    grown.add(patches, POSITIONS_PX, WEIGHT)
    first = GrowingCanvas(tile_px=16)
    first.add(patches[:1], POSITIONS_PX[:1], WEIGHT)
    for found in results:
        assert_same(found["known"], whole)
        assert_same(found["growing"], grown.crop())
        # The process without a patch has that of the other one.
        assert_same(found["first"], first.crop())


@pytest.mark.contract("stitch.reduce")
@pytest.mark.parametrize("agree_phases", [True, False])
def test_two_processes_stitch_one_canvas(results: list[dict[str, dict[str, Tensor]]], agree_phases: bool) -> None:
    alone = stitch(make_patches(), list(range(6)), agree_phases=agree_phases)
    expected = alone.finish()
    for found in results:
        part = found[f"stitcher {agree_phases}"]
        assert_same(part, expected)
        assert (int(part["n_placed"]), part["left_out"].tolist()) == (COUNT - 1, [BAD])
