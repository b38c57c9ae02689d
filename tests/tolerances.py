"""How close is close: one table for the tests of the physics, each entry with its reason."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES: dict[str, tuple[float, str]] = {
    "copied": (0.0, "numbers are moved, or multiplied by 0 and 1 only: not one bit may change"),
    "double": (1e-12, "sums of up to 1e5 terms of order 1 in float64 lose at most a few hundred of its 2e-16"),
    "single": (2e-6, "sums of up to 1e4 terms in float32 (6e-8), accumulated pairwise"),
    "single_fft": (5e-6, "a 2-D FFT of up to 256 px and a square in float32"),
    "stored_single": (1e-7, "computed in double, stored once in float32 or complex64: half a unit in the last place"),
    "order": (1e-12, "the same float64 sum in another order; the promise of the canvas"),
    "golden": (1e-6, "the oracle repeats the original's float32 operations in another order of summation"),
    "golden_network": (1e-5, "some forty float32 convolutions, in whatever order the library sums"),
    "likelihood": (1e-4, "y log I where I is 1e-9 of its maximum: the last digit of a float32 sum comes to the front"),
    "likelihood_gradient": (1e-3, "the same in 1 - y/I"),
    "oracle_operator": (1e-5, "two float32 implementations of one operator, one of them with a whole-canvas sum"),
    "oracle_physics": (1e-6, "an orthonormal float32 FFT and products; errors do not grow along them"),
    "oracle_gates": (5e-2, "a unit of the 8 x 8 code whose ReLU or maximum is decided by the last digit"),
    "oracle_steps": (1e-3, "ten steps of Adam, each of which makes the most of the last digits of the one before"),
    "oracle_double": (1e-12, "the same, where both compute in float64"),
    "devices": (1e-6, "the same formula on CPU and GPU, whose FFTs and sums run in another order"),
    "processes": (1e-5, "epochs of float32 sums over the same frames, added in another order by several processes"),
    "first_order": (0.02, "a formula linear in a perturbation of 1 %, whose square is left out"),
    "high_dose": (1e-4, "half a count added to 1e4 and more of them"),
    "first_order_exact": (1e-10, "a product with a Jacobian by automatic differentiation in float64"),
    "conjugate_gradients": (1e-4, "twenty steps on a nearly singular matrix, which lose orthogonality"),
    "six_percent": (0.06, "sums of a dozen variances or more from 150 draws: two standard errors"),
    "two_percent": (0.02, "statistics of 2e5 draws: five standard errors of a variance are 1.6 %"),
}
"""Largest relative L2 distance, and why this much is needed and no more."""


def tolerance(name: str) -> float:
    return TOLERANCES[name][0]


def relative_l2(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| over all elements in double precision; |a| where b is zero."""
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.detach().cpu().to(wide), b.detach().cpu().to(wide)
    distance, norm = float((a - b).abs().square().sum().sqrt()), float(b.abs().square().sum().sqrt())
    return distance / norm if norm > 0 else distance


def assert_close(a: Tensor, b: Tensor, name: str) -> None:
    """Fail unless a is within the named tolerance of b; NaN is never close."""
    limit, reason = TOLERANCES[name]
    error = relative_l2(a, b)
    assert error <= limit, f"relative L2 distance {error:.3g} exceeds '{name}' {limit:g} ({reason})"
