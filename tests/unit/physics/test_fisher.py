"""The information of counts, against dense matrices of a tiny scan in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close
from torchptycho.physics.fisher import Change, FisherInformation
from torchptycho.physics.patches import extract
from torchptycho.physics.propagation import FAR_FIELD

_N_PX, _SHAPE, _N_FRAMES = 6, (10, 11), 7
_OFFSET_COUNTS = 0.5


class _Scan:
    """A scan of two modes with a mask, a background and a scale for each frame."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.complex(*(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)))

        self.object, self.probe = 1 + 0.4 * draw(*_SHAPE), 2 * draw(2, _N_PX, _N_PX)
        room = torch.tensor([_SHAPE[0] - _N_PX, _SHAPE[1] - _N_PX], dtype=torch.float64) - 1e-3
        self.corners_px = torch.rand(_N_FRAMES, 2, generator=generator, dtype=torch.float64) * room
        self.mask = torch.rand(_N_PX, _N_PX, generator=generator) > 0.2
        self.background = torch.rand(_N_PX, _N_PX, generator=generator, dtype=torch.float64)
        self.frame_scale = 1 + 0.2 * torch.rand(_N_FRAMES, generator=generator, dtype=torch.float64)

    def make_information(self, offset_counts: float, *, fits_all: bool = True) -> FisherInformation:
        return FisherInformation(
            self.object,
            self.probe,
            self.corners_px,
            mask=self.mask,
            background=self.background,
            offset_counts=offset_counts,
            fits_probe=fits_all,
            fits_positions=fits_all,
            build_probe=lambda index: self.probe * self.frame_scale[index, None, None, None],
            frame_scale=self.frame_scale,
            batch_frames=4,
        )

    def expect(self, parameters: Tensor) -> Tensor:
        """Compute expected counts, [frames, N, N], of real parameters as `_flatten` makes them."""
        sizes = [2 * self.object.numel(), 2 * self.probe.numel(), self.corners_px.numel()]
        object, probe, positions = parameters.split(sizes)
        field = torch.view_as_complex(object.view(*_SHAPE, 2))
        modes = torch.view_as_complex(probe.view(*self.probe.shape, 2)) * self.frame_scale[:, None, None, None]
        patches = extract(field, positions.view(-1, 2), _N_PX)
        wave = FAR_FIELD.forward(patches[:, None] * modes)
        return (wave.real.square() + wave.imag.square()).sum(1) + self.background

    def make_matrix(self, weigh: object) -> Tensor:
        """Build J^T diag(w(I)) J over the good pixels."""
        assert callable(weigh)
        at = _flatten(Change(self.object[None], self.probe[None], self.corners_px[None]))[0]
        slope = torch.autograd.functional.jacobian(self.expect, at)[:, self.mask].flatten(0, 1)
        weight = weigh(self.expect(at)[:, self.mask].flatten())
        return slope.T @ (weight[:, None] * slope)


def _flatten(change: Change) -> Tensor:
    parts = [change.object, change.probe, change.positions_px]
    real = [
        torch.view_as_real(part.resolve_conj()) if part.is_complex() else part for part in parts if part is not None
    ]
    return torch.cat([part.flatten(1) for part in real], 1)


def _unflatten(vectors: Tensor, like: _Scan) -> Change:
    sizes = [2 * like.object.numel(), 2 * like.probe.numel(), like.corners_px.numel()]
    object, probe, positions = vectors.split(sizes, 1)
    return Change(
        torch.view_as_complex(object.reshape(-1, *_SHAPE, 2)),
        torch.view_as_complex(probe.reshape(-1, *like.probe.shape, 2)),
        positions.reshape(-1, _N_FRAMES, 2),
    )


@pytest.mark.contract("physics.fisher.matrix")
@pytest.mark.parametrize("offset_counts", [0.0, _OFFSET_COUNTS])
def test_information_is_that_of_the_dense_matrix(offset_counts: float) -> None:
    scan = _Scan()
    matrix = scan.make_matrix(lambda expected: 1 / (expected + offset_counts))
    vectors = torch.randn(4, len(matrix), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = scan.make_information(offset_counts).apply(_unflatten(vectors, scan))
    assert_close(_flatten(found), vectors @ matrix, "first_order_exact")


@pytest.mark.contract("physics.fisher.scores")
def test_scores_have_the_covariance_of_weighted_residuals() -> None:
    scan = _Scan()
    matrix = scan.make_matrix(lambda expected: expected / (expected + _OFFSET_COUNTS) ** 2)
    scores = _flatten(scan.make_information(_OFFSET_COUNTS).draw_scores(150, torch.Generator().manual_seed(2)))
    assert_close(scores.square().sum(1).mean()[None], matrix.trace()[None], "six_percent")
    # The strongest tenth of the directions, over which the draws average.
    strongest = torch.linalg.eigh(matrix).eigenvectors[:, -len(matrix) // 10 :]
    found = (scores @ strongest).square().mean(0).sum()
    assert_close(found[None], (strongest.T @ matrix @ strongest).trace()[None], "six_percent")
    assert float(scores.mean(0).norm() ** 2) < 3 / len(scores) * float(matrix.trace())


@pytest.mark.contract("physics.fisher.solve")
def test_conjugate_gradients_solve_what_the_counts_determine() -> None:
    scan = _Scan()
    matrix = scan.make_matrix(lambda expected: 1 / expected)
    n_object = 2 * scan.object.numel()
    of_object = matrix[:n_object, :n_object]
    information = scan.make_information(0.0, fits_all=False)
    scores = information.draw_scores(1, torch.Generator().manual_seed(4))
    vector = torch.view_as_real(scores.object).flatten()
    exact = vector @ torch.linalg.lstsq(of_object, vector, driver="gelsd").solution
    found = information.solve(scores, 20)
    energy = found.dot(scores)
    assert_close(found.dot(information.apply(found)), energy, "conjugate_gradients")
    # The weakest directions, of the canvas' edge, are not reached in so few steps.
    assert 0.8 * float(exact) < float(energy) < float(exact)


@pytest.mark.contract("physics.fisher.solve")
def test_global_phase_has_no_information() -> None:
    scan = _Scan()
    turned = Change(1j * scan.object[None], -1j * scan.probe[None], torch.zeros(1, _N_FRAMES, 2, dtype=torch.float64))
    grown = Change(scan.object[None], scan.probe[None], torch.zeros(1, _N_FRAMES, 2, dtype=torch.float64))
    of_phase, of_scale = (float(_flatten(scan.make_information(0.0).apply(one)).norm()) for one in (turned, grown))
    assert of_phase < 1e-9 * of_scale


@pytest.mark.contract("physics.fisher.matrix")
def test_without_a_probe_that_is_fitted_the_object_has_all_information() -> None:
    scan = _Scan()
    vectors = torch.zeros(1, 2 * scan.object.numel() + 2 * scan.probe.numel() + 2 * _N_FRAMES, dtype=torch.float64)
    vectors[:, : 2 * scan.object.numel()] = 1.0
    change = _unflatten(vectors, scan)
    alone = scan.make_information(0.0, fits_all=False).apply(Change(change.object))
    assert alone.probe is None
    assert alone.positions_px is None
    assert_close(alone.object, scan.make_information(0.0).apply(change).object, "double")
