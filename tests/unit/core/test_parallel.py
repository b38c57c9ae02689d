"""Work that is shared among the cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from strategies import make_asymmetric_probe, normal

from torchptycho.core.parallel import ordered_map
from torchptycho.physics.overlap import probe_weight
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.stitcher import PatchStitcher


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.contract("cores.order")
def test_what_comes_last_is_told_in_its_turn() -> None:
    threads = set()

    def slow_at_first(piece: int) -> int:
        time.sleep(0.05 if piece == 0 else 0)
        threads.add(threading.get_ident())
        return piece

    with ordered_map(slow_at_first, range(20)) as found:
        assert list(found) == list(range(20))
    assert threading.get_ident() not in threads
    with ordered_map(slow_at_first, range(20), serial=True) as found:
        assert list(found) == list(range(20))
    assert threading.get_ident() in threads


@pytest.mark.contract("cores.threads")
@pytest.mark.parametrize("pieces", [1, 2, 20])
def test_each_core_has_its_share_of_torch_s_threads_and_they_come_back(pieces: int) -> None:
    with ordered_map(lambda _: torch.get_num_threads(), range(pieces)) as found:
        shares = set(found)
    assert shares == {-(-3 // min(3, pieces))}
    assert torch.get_num_threads() == 3


@pytest.mark.contract("cores.errors")
def test_an_error_is_raised_where_its_piece_was_due_and_what_was_begun_ends() -> None:
    told: list[int] = []

    def fails_at_five(piece: int) -> int:
        if piece == 5:
            raise ValueError("five")
        return piece

    with ordered_map(fails_at_five, range(100)) as found, pytest.raises(ValueError, match="five"):
        told.extend(found)
    assert told == [0, 1, 2, 3, 4]
    assert torch.get_num_threads() == 3


@pytest.mark.contract("cores.modes")
def test_gradients_and_inference_are_as_where_it_was_called() -> None:
    for context in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
        with context:
            here = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
            with ordered_map(lambda _: (torch.is_inference_mode_enabled(), torch.is_grad_enabled()), range(4)) as found:
                assert set(found) == {here}


@pytest.mark.contract("cores.stitching")
@pytest.mark.parametrize("agree_phases", [True, False])
def test_an_image_is_that_of_one_thread_to_the_bit(agree_phases: bool) -> None:
    patches, weight = (
        normal((600, 16, 16), 1, torch.complex64).reshape(150, 4, 16, 16),
        probe_weight(make_asymmetric_probe(16)).float(),
    )
    places = torch.rand(600, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 80
    images = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        mosaic = PatchStitcher(places, weight, agree_phases=agree_phases)
        mosaic.add(patches, torch.arange(600).reshape(150, 4), torch.ones(150, 4, dtype=torch.bool))
        images.append(mosaic.finish())
    assert torch.equal(images[0].numerator, images[1].numerator)
    assert torch.equal(images[0].weight, images[1].weight)
    assert images[0].finish().spread is not None


@pytest.mark.contract("cores.canvas")
def test_several_threads_may_add_to_one_place_of_a_canvas_at_once() -> None:
    patches, weight = normal((256, 256, 256), 3, torch.complex64), torch.ones(256, 256)
    places = torch.full((256, 2), 3.25, dtype=torch.float64)
    together, alone = (Canvas.for_positions(places, 256) for _ in range(2))
    alone.add(patches, places, weight)
    pieces = torch.arange(256).split(8)
    with ordered_map(lambda some: together.add(patches[some], places[some], weight), pieces) as placed:
        assert all(bool(each.all()) for each in placed)
    assert torch.equal(together.numerator, alone.numerator)
    assert torch.equal(together.weight, alone.weight)
