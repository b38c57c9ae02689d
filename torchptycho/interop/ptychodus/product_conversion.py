"""Conversion between Ptychodus' data and this package's: patterns and product to a scan, an image to a product."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64
from ptychodus.api.object import Object
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
from ptychodus.api.product import LossValue, Product
from ptychodus.api.reconstruct import ReconstructInput

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.interop.ptychodus.training_files import PATCH_CENTRE_OFFSET_PX
from torchptycho.io import RawScan
from torchptycho.io.frames.frame_stacks import working_dtype
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.probe_variation import join_variation, split_variation
from torchptycho.io.raw_scan import build_geometry
from torchptycho.io.scan_builder import build_scan

__all__ = ["make_product", "make_scan_from_input", "make_start_image", "place_on_canvas"]

_log = logging.getLogger(__name__)

# Power of a probe in sqrt(photons) over the photons of a mean frame: more than 1, because objects absorb.
_MIN_POWER, _MAX_POWER = 0.95, 20.0


def make_scan_from_input(parameters: ReconstructInput) -> Scan:
    """Make a scan of the patterns, bad pixels and product, in the pixels of the product's object.

    Raises:
        ScanError: the data are near-field, the object has several layers or oblong pixels, or the arrays are invalid.
    """
    product = parameters.product
    name = Path(product.metadata.name or "product")
    product_object = product.object_
    pixel = product_object.get_pixel_geometry()
    if product_object.num_layers != 1:
        raise ScanError(
            name,
            "object",
            expected="an object of one layer",
            found=f"{product_object.num_layers} layers",
            remedy="Choose a multislice reconstructor.",
        )
    if not (pixel.width_m > 0 and math.isclose(pixel.height_m, pixel.width_m, rel_tol=1e-3)):
        raise ScanError(
            name,
            "object",
            expected="square pixels",
            found=f"{pixel.height_m:g} m x {pixel.width_m:g} m",
            remedy="Resample the product; non-square pixels are not supported.",
        )
    geometry = product_object.get_geometry()
    rows = geometry.map_probe_positions_to_object_y_px(product.probe_positions)
    columns = geometry.map_probe_positions_to_object_x_px(product.probe_positions)
    patterns = np.asarray(parameters.diffraction_patterns)
    bad: Any = parameters.bad_pixels
    recorded = RawScan(
        path=name,
        format="Ptychodus",
        frames=ArrayFrames(np.ascontiguousarray(patterns, working_dtype(patterns.dtype))),
        rows=range(len(patterns)),
        domain="counts",
        positions=np.stack([rows, columns], axis=1).astype(np.float64) + PATCH_CENTRE_OFFSET_PX,
        unit="px",
        position_keys=("probe_position_y_m", "probe_position_x_m"),
        probe=to_probe_modes(name, "probe", product.probes.get_array().astype(np.complex64)),
        bad_pixels=None if bad is None else np.asarray(bad, bool),
        geometry=build_geometry(
            name,
            energy_eV=product.metadata.photon_energy_eV,
            distance_m=abs(product.metadata.detector_distance_m),
            object_pixel_m=pixel.height_m,
        ),
        far_field=product.metadata.far_field,
    )
    return build_scan(recorded, "handed over in memory", ReadConfig(domain="counts"))


def make_start_image(product: Product, photons_per_frame: float = 0.0) -> Reconstruction | None:
    """Convert the product's object to a start image; return None if it has no finite value other than 0.

    With `opr_weights` the start has the product's probe too, and how it varies.

    Arguments:
        photons_per_frame: of the patterns. A probe whose power is not of this order is in other units, and scaled.
    """
    values = product.object_.get_layer(0).astype(np.complex64)
    valid = np.isfinite(values) & (values != 0)
    if not valid.any():
        return None
    weights = product.probes.get_opr_weights_or_none()
    variation: dict[str, Any] = {}
    if weights is not None:
        name = Path(product.metadata.name or "product")
        variation = split_variation(name, product.probes.get_array(), weights)
        factor = _choose_probe_factor(variation["probe"], photons_per_frame)
        variation |= {key: variation[key] * factor for key in ("probe", "opr_modes") if key in variation}
    return Reconstruction(
        object=np.where(valid, values, 0).astype(np.complex64),
        coverage=valid.astype(np.float32),
        valid=valid,
        origin_px=(0, 0),
        **variation,
    )


def _choose_probe_factor(probe: np.ndarray, photons_per_frame: float) -> np.float32:
    """Return 1 for a probe in sqrt(photons), else what makes its power that of a mean frame."""
    power = float(np.sum(np.abs(probe) ** 2, dtype=np.float64))
    if photons_per_frame <= 0 or power <= 0 or _MIN_POWER <= power / photons_per_frame <= _MAX_POWER:
        return np.float32(1)
    return np.float32(math.sqrt(photons_per_frame / power))


def place_on_canvas(image: Reconstruction, shape: tuple[int, int]) -> Complex64[np.ndarray, "*slices h w"]:
    """Copy the image, or each of its slices, onto pixels [0, H) x [0, W) of the object's grid; 0 where it is not valid.

    Pixels outside are cut off, with a warning.
    """
    if image.object.ndim == 3:
        return np.stack([place_on_canvas(dataclasses.replace(image, object=each), shape) for each in image.object])
    canvas = np.zeros(shape, np.complex64)
    known = np.where(image.valid, image.object, 0)
    low = [max(0, origin) for origin in image.origin_px]
    high = [
        min(edge, origin + size) for edge, origin, size in zip(shape, image.origin_px, image.object.shape, strict=True)
    ]
    if high[0] > low[0] and high[1] > low[1]:
        (top, left), (y, x) = low, image.origin_px
        inside = (slice(top - y, high[0] - y), slice(left - x, high[1] - x))
        canvas[top : high[0], left : high[1]] = known[inside]
        lost = int(image.valid.sum()) - int(image.valid[inside].sum())
    else:
        lost = int(image.valid.sum())
    if lost:
        _log.warning("%d px of the image lie outside the product's object of %dx%d px and are cut off", lost, *shape)
    return canvas


def make_product(parameters: ReconstructInput, image: Reconstruction, *, moved: bool = False) -> Product:
    """Make a product of the image, on the grid of the input's object, with the refined probe and losses.

    Arguments:
        moved: use the positions of the image.
    """
    product = parameters.product
    product_object = product.object_
    probes, places = product.probes, product.probe_positions
    if image.probe is not None:
        variation = join_variation(image)
        array, weights = (image.probe, None) if variation is None else variation
        probes = ProbeSequence(array=array, opr_weights=weights, pixel_geometry=probes.get_pixel_geometry())
    if moved and image.positions_px is not None:
        places = _make_positions(product, image.positions_px)
    return Product(
        metadata=product.metadata,
        probe_positions=places,
        probes=probes,
        object_=Object(
            array=place_on_canvas(image, (product_object.height_px, product_object.width_px)),
            pixel_geometry=product_object.get_pixel_geometry(),
            center=product_object.get_center(),
            layer_spacing_m=[image.slice_spacing_m or 0.0] * (len(image.object) - 1) if image.object.ndim == 3 else [],
        ),
        losses=[LossValue(epoch, value) for epoch, value in enumerate(image.history.get("misfit", ()), start=1)],
    )


def _make_positions(product: Product, positions_px: np.ndarray) -> ProbePositionSequence:
    product_object, before = product.object_, product.probe_positions
    center, pixel = product_object.get_center(), product_object.get_pixel_geometry()
    y_m, x_m = (
        middle_m + (along - PATCH_CENTRE_OFFSET_PX - (edge - 1) / 2) * edge_m
        for middle_m, along, edge, edge_m in (
            (center.y_m, positions_px[:, 0], product_object.height_px, pixel.height_m),
            (center.x_m, positions_px[:, 1], product_object.width_px, pixel.width_m),
        )
    )
    return ProbePositionSequence(
        [
            ProbePosition(place.index, float(x), float(y), place.probe_photon_count)
            for place, x, y in zip(before, x_m, y_m, strict=True)
        ]
    )
