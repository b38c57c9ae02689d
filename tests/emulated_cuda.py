"""A CUDA device that is not there: torch on a CPU that keeps tensors of the two devices as far apart as CUDA does.

Within `emulated_cuda()` the device `cuda` exists. What is on it is a `EmulatedTensor`, which holds a tensor of the
CPU and computes with that: values, views, changes in place and derivatives are those of the CPU. But where a tensor of
the one device meets one of the other, it fails as CUDA does, and so does what reads the GPU's memory from outside.

What it cannot show: other results of other kernels, what the GPU has not finished yet, its memory, several processes,
other threads, and what compilers make. The rules are those of torch's TensorIterator, of `Tensor.index`, of
`torch._subclasses.fake_tensor`, and of the documentation of `torch.use_deterministic_algorithms`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

__all__ = ["EmulatedGpu", "EmulatedTensor", "emulated_cuda"]

_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)
_aten = torch.ops.aten
_COPIES = {_aten.copy_, _aten._to_copy, _aten._has_compatible_shallow_copy_type}
_INDEXED = {_aten.index, _aten._unsafe_index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
# Beside the operators that work number by number, these take a CPU's single number.
_ACCEPT_CPU_SCALAR = {
    _aten.masked_fill,
    _aten.masked_fill_,
    _aten.fill,
    _aten.fill_,
    _aten.index_fill,
    _aten.index_fill_,
}
_SYNCHRONIZING = {
    _aten._local_scalar_dense,
    _aten.item,
    _aten.is_nonzero,
    _aten.nonzero,
    _aten.masked_select,
    _aten.equal,
}
# What CUDA refuses where only deterministic algorithms are allowed (and sums by index over more than one axis).
_NONDETERMINISTIC = {
    _aten.median.dim,
    _aten.nanmedian.dim,
    _aten.kthvalue.default,
    _aten.cumsum.default,
    _aten.bincount.default,
    _aten.histc.default,
    _aten.put_.default,
    _aten.grid_sampler_2d_backward.default,
}
_SUMS_BY_INDEX = {_aten.scatter_add, _aten.scatter_add_}
# CUDA has hardly any operator for them; these move numbers, or make others of them.
_WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_WITHOUT_ARITHMETIC = _COPIES | {_aten.clone, _aten.cat, _aten.detach, _aten.alias}


@dataclasses.dataclass
class EmulatedGpu:
    """What the pretended GPU tells of itself.

    Arguments:
        free_bytes: memory that nobody has.
        peak_bytes: most memory that tensors ever took.
        waits: how often the host had to wait for it: single numbers that were looked at, selections whose size depends
            on numbers, and copies from one to the other that are not `non_blocking`.
    """

    free_bytes: int = 1 << 33
    peak_bytes: int = 1 << 20
    n_syncs: int = 0


_machines: list[EmulatedGpu] = []


class EmulatedTensor(Tensor):
    """A tensor on the pretended device. `inside` has its numbers, on the CPU.

    To C++ it is one of the CPU, because a torch without CUDA cannot take derivatives on a device that it does not know.
    """

    cpu_tensor: Tensor
    # The mode does what there is to do, and this would make every result one of this class.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, cpu_tensor: Tensor) -> EmulatedTensor:
        # A conjugate that is only noted is one for the CPU's own tensors.
        cpu_tensor = cpu_tensor.resolve_conj().resolve_neg()
        made: EmulatedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            cpu_tensor.size(),
            strides=cpu_tensor.stride(),
            storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype,
            device=_CPU,
        )
        made.cpu_tensor = cpu_tensor
        return made

    device = property(lambda self: _CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"emulated_cuda({self.cpu_tensor!r})"

    def __format__(self, specification: str) -> str:
        return format(self.cpu_tensor.item() if self.dim() == 0 else self, specification)

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = EmulatedTensor(self.cpu_tensor.detach().clone()).requires_grad_(self.requires_grad)
        copy.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "cpu_tensor"}
        return memo.setdefault(id(self), copy)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file holds numbers; that they came from a GPU is not pretended.
        return self.cpu_tensor.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        _machines[-1].n_syncs += 1
        return self.cpu_tensor.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **({"dtype": self.dtype, "device": _CUDA} | options))

    def new(self, *sizes: Any) -> Tensor:
        return torch.empty(*sizes, dtype=self.dtype, device=_CUDA)

    def cpu(self, *_: Any, **options: Any) -> Tensor:
        return self.to(_CPU, **options)

    def cuda(self, *_: Any, **options: Any) -> Tensor:
        return self.to(_CUDA, **options)

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError(f"cannot pin 'torch.cuda.{self.dtype}', only dense CPU tensors can be pinned")

    def to(self, *arguments: Any, **options: Any) -> Tensor:
        return _to(self, *arguments, **options)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "device"}
        _check_devices(func, args, kwargs)
        if func.overloadpacket in _SYNCHRONIZING or (func.overloadpacket in _INDEXED and _requires_sync(args[1])):
            _machines[-1].n_syncs += 1
        outside = {id(one.cpu_tensor): one for one in tree_iter((args, kwargs)) if isinstance(one, EmulatedTensor)}
        own_args, own_kwargs = tree_map_only(EmulatedTensor, lambda one: one.cpu_tensor, (args, kwargs))
        found = func(*own_args, **own_kwargs)
        # A view of what was made outside of inference mode is no tensor of that mode either.
        inference = torch.is_inference_mode_enabled() and not (func.is_view and not args[0].is_inference())
        with torch.inference_mode(inference):
            # What was changed in place is what came; a view shares its memory by itself.
            told = tree_map_only(
                Tensor, lambda one: outside[id(one)] if id(one) in outside else EmulatedTensor(one), found
            )
        for one in outside.values():
            if one.shape != one.cpu_tensor.shape:
                raise NotImplementedError(f"{func} changes a shape in place, which is not pretended")
        # A tensor of the CPU that a copy changed.
        return args[0] if func.overloadpacket is _aten.copy_ else told


def _requires_sync(indices: Any) -> bool:
    """Whether the result's size depends on numbers of the GPU's, or the indices have to be brought over."""
    tensors = [index for index in tree_iter(indices) if isinstance(index, Tensor)]
    return any(index.dtype == torch.bool or not isinstance(index, EmulatedTensor) for index in tensors)


def _check_devices(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Fail where CUDA does."""
    operator = func.overloadpacket
    given = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
    theirs = [one for one in given if not isinstance(one, EmulatedTensor)]
    if any(one.dtype in _WIDE_UNSIGNED for one in given) and not (operator in _WITHOUT_ARITHMETIC or func.is_view):
        raise NotImplementedError(f"{operator} is not implemented for unsigned integers of more than a byte on CUDA")
    if torch.are_deterministic_algorithms_enabled() and (
        func in _NONDETERMINISTIC or (operator in _SUMS_BY_INDEX and args[0].dim() > 1)
    ):
        raise RuntimeError(f"{operator} does not have a deterministic implementation on CUDA")
    if operator in _COPIES or not theirs:
        return
    if operator in _INDEXED:
        if not isinstance(args[0], EmulatedTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        # Indices may come from the CPU, which are brought over; values may not.
        theirs = [one for one in args[2:3] if isinstance(one, Tensor) and not isinstance(one, EmulatedTensor)]
    numbers = operator in _INDEXED or operator in _ACCEPT_CPU_SCALAR or torch.Tag.pointwise in func.tags
    changed = args[0] if func._schema.is_mutable and args else kwargs.get("out")
    stays = isinstance(changed, Tensor) and not isinstance(changed, EmulatedTensor)
    if stays or any(one.dim() > 0 or not numbers for one in theirs):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )


class _Transfer(torch.autograd.Function):
    """A copy on the other device, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _copy_across(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _copy_across(gradient)


def _copy_across(values: Tensor) -> Tensor:
    return values.cpu_tensor.clone() if isinstance(values, EmulatedTensor) else EmulatedTensor(values.detach().clone())


def _to(values: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """`Tensor.to`, in all its forms."""
    device, rest = options.pop("device", None), list(arguments)
    if rest and isinstance(rest[0], Tensor):
        like = rest.pop(0)
        device, rest = like.device, [like.dtype, *rest]
    elif rest and not isinstance(rest[0], torch.dtype):
        device = rest.pop(0)
    options |= dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False))
    here = values.device if device is None else _device(device)
    if here != values.device:
        later = options.get("non_blocking", False)
        if later and here == _CPU:
            raise AssertionError("a copy to the host that is not waited for: what is read there may be anything")
        _machines[-1].n_syncs += not later
        values = _Transfer.apply(values) if values.requires_grad and torch.is_grad_enabled() else _copy_across(values)
    options = {name: value for name, value in options.items() if value is not None and name != "non_blocking"}
    return _TORCH_TO(values, **options) if options else values


_TORCH_TO = torch.Tensor.to


def _device(device: Any) -> torch.device:
    known = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if known.type == "cuda" and known.index:
        raise RuntimeError(f"CUDA error: invalid device ordinal ({known})")
    return _CUDA if known.type == "cuda" else known


class _Factories(TorchFunctionMode):
    """Takes `device="cuda"` wherever torch has it, and brings there what is made."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _to(*args, **kwargs)
        if func is torch.Tensor.cuda:
            return _to(args[0], _CUDA, non_blocking=kwargs.get("non_blocking", False))
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        given = [*args, *kwargs.values()]
        there = any(isinstance(one, EmulatedTensor) for one in given)
        device = None if kwargs.get("device") is None else _device(kwargs.pop("device"))
        wanted = device or (_CUDA if there else _CPU)
        for generator in (one for one in given if isinstance(one, torch._C.Generator)):
            if generator.device.type != wanted.type:
                raise RuntimeError(
                    f"Expected a '{wanted.type}' device type for generator but found '{generator.device.type}'"
                )
        if device is None:
            return func(*args, **kwargs)
        if device != _CUDA:
            # Of a tensor there, something here: `torch.zeros_like(there, device="cpu")`.
            args = tree_map_only(EmulatedTensor, lambda one: one.cpu_tensor, args)
            return func(*args, device=device, **kwargs)
        free = kwargs.pop("requires_grad", False)
        made = func(*args, **kwargs)
        if not isinstance(made, EmulatedTensor):
            # Numbers of the host's have to be brought over, which `torch.zeros` and its like do not.
            _machines[-1].n_syncs += func in _FROM_DATA
            made = EmulatedTensor(made)
        return made.requires_grad_() if free else made


_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


class _Generator(torch._C.Generator):
    """A generator of random numbers that says to be where it was asked to be."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made: _Generator = super().__new__(cls)
        made._where = _device(device)
        return made

    _where: torch.device
    device = property(lambda self: self._where)  # type: ignore[assignment]


@contextlib.contextmanager
def emulated_cuda() -> Iterator[EmulatedGpu]:
    """Within it, torch has one CUDA device; what it tells of itself can be changed."""
    machine = EmulatedGpu()
    properties = SimpleNamespace(name="pretended", major=9, minor=0, total_memory=1 << 34, multi_processor_count=1)
    told: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda device=None: (machine.free_bytes, properties.total_memory),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: machine.peak_bytes,
    }
    silent = ("reset_peak_memory_stats", "empty_cache", "synchronize", "set_device", "manual_seed", "manual_seed_all")
    told |= {name: lambda *_, **__: None for name in silent}
    autocast = torch.autocast

    def half(device_type: str, *arguments: Any, **options: Any) -> torch.autocast:
        # To C++ these tensors are the CPU's.
        return autocast("cpu" if device_type == "cuda" else device_type, *arguments, **options)

    with contextlib.ExitStack() as stack:
        _machines.append(machine)
        stack.callback(_machines.pop)
        stack.enter_context(mock.patch.multiple(torch.cuda, **told))
        stack.enter_context(mock.patch.multiple(torch, Generator=_Generator, autocast=half))
        # A module's parameters stay the same objects where it moves, as they do with CUDA.
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        torch.__future__.set_swap_module_params_on_conversion(True)
        factories, backward = _Factories(), torch.autograd.graph._engine_run_backward

        def run_backward(*arguments: Any, **options: Any) -> Any:
            # `backward` runs without the mode, and functions with derivatives of their own make tensors on the way.
            with factories:
                return backward(*arguments, **options)

        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", run_backward))
        stack.enter_context(factories)
        yield machine
