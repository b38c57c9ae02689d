"""Base class and registry of generators."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from torchptycho.core.config import ModelConfig
from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.physics.group_patches import GATHER_SCATTER, PatchOperators

__all__ = ["Generator", "GroupInput", "build_generator", "find_generator", "require_trusted_generator"]

_BUILT_IN = {
    "pie_unet": "torchptycho.models.generators.pie_unet:PieUNet",
    "resunet": "torchptycho.models.generators.resunet:ResUNet",
    "cnn": "torchptycho.models.generators.cnn:CNN",
}
_ENTRY_POINTS = "torchptycho.generators"


@dataclasses.dataclass(frozen=True, eq=False)
class GroupInput:
    """Input of a generator: B groups of C frames.

    Arguments:
        amplitude: diffraction amplitudes scaled so that a mean frame has sum A^2 = (N/2)^2, 0 under the mask.
        probe: in the same units; probe_b is 1 or b.
        offset_px: (y, x) of each frame from its group's centre.
        mask: good detector pixels.
        intensity_per_count: squared amplitude that one count makes.
        background: squared amplitude that does not come from the sample.
        canvas_px: even edge of a canvas around the group's centre that holds all its patches.
        patch_operators: how patches are read from canvases and placed there.
    """

    amplitude: Float[Tensor, "b c n n"]
    probe: Complex[Tensor, "probe_b p n n"]
    offset_px: Float[Tensor, "b c 2"]
    mask: Bool[Tensor, "b 1 n n"]
    intensity_per_count: Float[Tensor, " b"]
    background: Float[Tensor, " b"]
    canvas_px: int
    patch_operators: PatchOperators = GATHER_SCATTER


class Generator(nn.Module, abc.ABC):
    """Maps the diffraction of a group to its object patches.

    To add your own, derive from this class and name it in the configuration as `package.module:Class`, or under a
    short name by an entry point of the group `torchptycho.generators`.
    """

    supported_n_px: ClassVar[tuple[int, ...]]
    """Frame sizes that the network can be built for."""
    patches_agree: ClassVar[bool] = False
    """Whether the patches of a group are cut from one object, so that merging them would change nothing but blur."""
    encoder_parts: ClassVar[tuple[str, ...]] = ("stem", "encoder", "down")
    """Names of the submodules that `freeze_encoder` leaves out of training."""

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> Generator:
        """Build the network for groups of `channels` frames of n_px pixels."""

    @abc.abstractmethod
    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        """Return the complex object patches, complex64 also under autocast."""

    def freeze_encoder(self) -> None:
        """Leave the parts before the decoder, those named in `encoder_parts`, out of training.

        Raises:
            ConfigError: the network has no such part.
        """
        frozen = [p for name, p in self.named_parameters() if name.split(".")[0] in self.encoder_parts]
        if not frozen:
            raise ConfigError(
                f"freeze_encoder: expected a generator with parts named {', '.join(self.encoder_parts)}; "
                f"{type(self).__name__} has none. It says which they are in `encoder_parts`."
            )
        for parameter in frozen:
            parameter.requires_grad = False


def require_trusted_generator(config: Any, path: str | Path, trust_generator: bool | str) -> None:
    """Refuse a model file that names code outside the registered generators, before anything of it is imported.

    Arguments:
        config: what the file says of its configuration, as plain data and not yet validated.
        path: the file.
        trust_generator: whether to trust what the file names, or the one name that is trusted.

    Raises:
        StoreError: it names `package.module:Class`, which is neither registered nor trusted.
    """
    model = config.get("model") if isinstance(config, dict) else None
    name = model.get("generator") if isinstance(model, dict) else None
    registered = _collect_registered()
    if trust_generator is True or not isinstance(name, str) or name == trust_generator:
        return
    if name not in registered and name not in registered.values():
        raise StoreError(
            f"{path}: 'generator': expected one of {', '.join(sorted(registered))}; found {name[:200]!r}, whose code "
            "would run. If you trust who made the file, allow it: --trust-generator, or trust_generator=True in Python."
        )


def _collect_registered() -> dict[str, str]:
    """Collect the registered generators: those of this package, and the entry points of installed ones."""
    entry_points = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS)}
    return entry_points | _BUILT_IN


def find_generator(name: str) -> type[Generator]:
    """Find the class that a configuration means by `name`.

    Raises:
        ConfigError: no such generator, or it does not derive from `Generator`.
    """
    registered = _collect_registered()
    target = registered.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        known = ", ".join(sorted(registered))
        raise ConfigError(f"generator: expected one of {known}, or package.module:Class; found '{name}'.")
    try:
        generator = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"generator '{name}' cannot be imported: {error}.") from None
    if not (isinstance(generator, type) and issubclass(generator, Generator)):
        raise ConfigError(
            f"generator '{name}': expected a class derived from torchptycho.models.generators.Generator; "
            f"found {generator!r}."
        )
    return generator


def build_generator(config: ModelConfig, n_px: int, gridsize: int) -> Generator:
    """Build the configured generator.

    Raises:
        ConfigError: unknown name, or a frame size that it was not made for.
    """
    kind = find_generator(config.generator)
    if n_px not in kind.supported_n_px:
        sizes = ", ".join(map(str, kind.supported_n_px))
        raise ConfigError(
            f"generator '{config.generator}' takes frames of N = {sizes} px; found N = {n_px}. "
            "Crop or pad the frames, or choose another generator."
        )
    return kind.from_config(config, n_px, gridsize * gridsize)
