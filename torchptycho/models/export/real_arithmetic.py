"""A traced network in real arithmetic: each complex tensor becomes two real ones.

ONNX has no complex arithmetic, and compilers leave complex operators alone. One rewriting serves every generator, those
of other packages included: what a generator computes stands in its `forward` and nowhere else.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from torchptycho.core.errors import ExportError

__all__ = ["RealArithmetic"]

_aten = torch.ops.aten


class _Pair(NamedTuple):
    """A complex tensor."""

    real: Any
    imag: Any


class RealArithmetic(torch.nn.Module):
    """Runs a traced network with pairs of real tensors instead of complex ones.

    Arguments:
        traced: graph with the arguments of `forward`; they and its results are real.
        edges_px: edges of arrays to be Fourier transformed by products with matrices; None for torch's own
            transform, around which numbers are complex.
    """

    def __init__(self, traced: fx.GraphModule, edges_px: Sequence[int] | None) -> None:
        super().__init__()
        self._traced, self._edges_px = traced, edges_px
        for edge_px in edges_px or ():
            number = torch.arange(edge_px, dtype=torch.float64)
            # Modulo N, because the angle of a large product would lose digits.
            angle = 2 * math.pi / edge_px * (torch.outer(number, number) % edge_px)
            matrix = edge_px**-0.5 * torch.stack([angle.cos(), angle.sin()])
            self.register_buffer(f"matrix{edge_px}", matrix.float(), persistent=False)

    def forward(self, frames: Tensor, offset_px: Tensor, input_scale: Tensor, mask: Tensor) -> Any:
        """Return the result of the traced network.

        Raises:
            ExportError: it uses an operator of complex numbers that is not known here.
        """
        return _Interpreter(self._traced, self._transform).run(frames, offset_px, input_scale, mask)

    def _transform(
        self, inverse: bool, values: Any, s: Any = None, dim: Any = (-2, -1), norm: str | None = None
    ) -> _Pair:
        """Transform in two dimensions: F X F, F being the matrix of one axis."""
        if self._edges_px is None:
            if _is_pair(values):
                # Avoid torch.complex, for which compiled code returns to Python's dispatcher.
                values = torch.view_as_complex(torch.stack(values, -1))
            far = torch.view_as_real((torch.fft.ifft2 if inverse else torch.fft.fft2)(values, s, dim, norm))
            return _Pair(far[..., 0], far[..., 1])
        if not _is_pair(values):
            values = _Pair(values, torch.zeros_like(values))
        height, edge_px = values.real.shape[-2:]
        if s is not None or tuple(dim) != (-2, -1) or height != edge_px or edge_px not in self._edges_px:
            known = " or ".join(f"{edge}x{edge}" for edge in self._edges_px)
            raise ExportError(
                f"export: expected transforms of {known} frames over the last two axes; the generator has one of "
                f"{tuple(values.real.shape)}, s = {s}, dim = {dim}."
            )
        cosine, sine = self.get_buffer(f"matrix{edge_px}")
        matrix = _Pair(cosine, sine if inverse else -sine)
        transformed = _matmul(matrix, _matmul(values, matrix))
        # The matrix of the orthonormal transform.
        factor = 1.0 if norm == "ortho" else float(edge_px) ** (-1 if inverse != (norm == "forward") else 1)
        return transformed if factor == 1 else _Pair(transformed.real * factor, transformed.imag * factor)


class _Interpreter(fx.Interpreter):
    extra_traceback = False  # which would be added to the message of an error

    def __init__(self, traced: fx.GraphModule, transform: Callable[..., _Pair]) -> None:
        super().__init__(traced)
        self._transform = transform

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return _Pair(value.real, value.imag) if isinstance(value, Tensor) and value.is_complex() else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is _aten._assert_tensor_metadata.default:  # of complex tensors, too
            return None
        if target in _SUBGRAPH_ARGUMENT:
            # A subgraph without gradients or with its own autocast setting; neither matters here.
            where = _SUBGRAPH_ARGUMENT[target]
            return _Interpreter(args[where], self._transform).run(*args[where + 1 :])
        if target is operator.getitem:  # of what such a part returned
            return args[0][args[1]]
        if target in _TRANSFORMS:
            return self._transform(_TRANSFORMS[target], *args, **kwargs)
        has_pair = any(map(_is_pair, pytree.tree_leaves((args, kwargs), is_leaf=_is_pair)))
        if target in _COMPLEX_FROM_REAL:
            return _COMPLEX_FROM_REAL[target](*args, **kwargs)
        # A real number times a complex one is complex too.
        if target in _COMPLEX_RULES and (has_pair or any(isinstance(value, complex) for value in args)):
            return _COMPLEX_RULES[target](*args, **kwargs)
        if any(_is_complex(value) for value in (*args, *kwargs.values())):
            args, kwargs = (
                [_to_real_dtype(value) for value in args],
                {k: _to_real_dtype(v) for k, v in kwargs.items()},
            )
            if not has_pair:
                made = target(*args, **kwargs)
                return _Pair(made, torch.zeros_like(made))
        elif not has_pair:
            return target(*args, **kwargs)
        if target in _APPLIED_TO_BOTH_PARTS:
            return _Pair(*(target(*_take_part(n, args), **_take_part(n, kwargs)) for n in (0, 1)))
        raise ExportError(
            f"export: expected operators of complex numbers that have a form in real ones; the generator has {target}. "
            "Write it with real and imaginary part (.real, .imag, torch.complex)."
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, _Pair)


def _is_complex(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_complex


def _to_real_dtype(value: Any) -> Any:
    return torch.float32 if _is_complex(value) else value


def _take_part(number: int, values: Any) -> Any:
    return pytree.tree_map(lambda value: value[number] if _is_pair(value) else value, values, is_leaf=_is_pair)


def _to_pair(value: Any) -> _Pair:
    """Split a value into real and imaginary part, None for one that is 0."""
    if isinstance(value, complex):
        return _Pair(value.real, value.imag)
    return value if _is_pair(value) else _Pair(value, None)


def _add(a: Any, b: Any, alpha: float = 1) -> _Pair:
    def part(one: Any, other: Any) -> Any:
        if one is None or other is None:
            return one if other is None else other * alpha
        return one + (other if alpha == 1 else other * alpha)

    a, b = _to_pair(a), _to_pair(b)
    return _Pair(part(a.real, b.real), part(a.imag, b.imag))


def _multiply(a: Any, b: Any) -> _Pair:
    a, b = _to_pair(a), _to_pair(b)
    a, b = (a, b) if a.imag is not None else (b, a)
    if b.imag is None:
        return _Pair(a.real * b.real, a.imag * b.real)
    return _Pair(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


def _divide(a: Any, b: Any) -> _Pair:
    if not _is_pair(b):
        return _Pair(a.real / b, a.imag / b)
    power = b.real * b.real + b.imag * b.imag
    product = _multiply(a, _conjugate(b))
    return _Pair(product.real / power, product.imag / power)


def _conjugate(a: _Pair) -> _Pair:
    return _Pair(a.real, -a.imag)


def _matmul(a: Any, b: Any) -> _Pair:
    """Multiply two matrices; two complex ones by three real products instead of four."""
    if not _is_pair(a):
        return _Pair(a @ b.real, a @ b.imag)
    if not _is_pair(b):
        return _Pair(a.real @ b, a.imag @ b)
    first, second, both = a.real @ b.real, a.imag @ b.imag, (a.real + a.imag) @ (b.real + b.imag)
    return _Pair(first - second, both - first - second)


# Index of the called subgraph among the arguments.
_SUBGRAPH_ARGUMENT: dict[Any, int] = {
    torch.ops.higher_order.wrap_with_autocast: 4,
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
}
_TRANSFORMS: dict[Any, bool] = {_aten.fft_fft2.default: False, _aten.fft_ifft2.default: True}
# Complex from real.
_COMPLEX_FROM_REAL: dict[Any, Callable[..., Any]] = {
    _aten.complex.default: _Pair,
    _aten.view_as_complex.default: lambda x: _Pair(x[..., 0], x[..., 1]),
}
_COMPLEX_RULES: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: _add,
    _aten.sub.Tensor: lambda a, b, alpha=1: _add(a, b, -alpha),
    _aten.mul.Tensor: _multiply,
    _aten.div.Tensor: _divide,
    _aten.matmul.default: _matmul,
    _aten._conj.default: _conjugate,
    _aten.conj.default: _conjugate,
    _aten.view_as_real.default: lambda a: torch.stack(a, -1),
    _aten.real.default: lambda a: a.real,
    _aten.imag.default: lambda a: a.imag,
    _aten.abs.default: lambda a: (a.real * a.real + a.imag * a.imag).sqrt(),
    _aten.ones_like.default: lambda a, **_: _Pair(torch.ones_like(a.real), torch.zeros_like(a.real)),
}
# Moves values, or is linear with real factors: the same for both parts.
_APPLIED_TO_BOTH_PARTS: frozenset[Any] = frozenset(
    {
        _aten.cat.default,
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.detach.default,
        _aten.expand.default,
        _aten.fft_fftshift.default,
        _aten.fft_ifftshift.default,
        _aten.flatten.using_ints,
        _aten.index.Tensor,
        _aten.mean.dim,
        _aten.neg.default,
        _aten.new_zeros.default,
        _aten.pad.default,
        _aten.permute.default,
        _aten.reshape.default,
        _aten.resolve_conj.default,
        _aten.roll.default,
        _aten.scatter_add_.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.squeeze.dim,
        _aten.stack.default,
        _aten.sum.default,
        _aten.sum.dim_IntList,
        _aten.to.dtype,
        _aten.transpose.int,
        _aten.unfold.default,
        _aten.unsqueeze.default,
        _aten.view.default,
        _aten.zeros_like.default,
    }
)
