"""A simulated measurement as Ptychodus has it: product, and patterns that its own simulator computed."""

from __future__ import annotations

import dataclasses

import numpy as np
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.object import Object, ObjectCenter
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
from ptychodus.api.product import Product, ProductMetadata
from ptychodus.api.reconstruct import ReconstructInput
from ptychodus.api.simulate.diffraction import generate_diffraction_data

PHOTONS = 1e5
PIXEL_M = 2e-8
CENTER_M = (3e-6, -1e-6)
BORDER_PX = ((6, 3), (10, 5))
"""Rows above and below, columns left and right of what is lit: the canvas is not that of the scan."""


def make_true_product(truth: np.ndarray, probe: np.ndarray, positions_px: np.ndarray, name: str = "sim") -> Product:
    """The product of an object [H, W], with a border around it and a centre away from the origin.

    Arguments:
        probe: [N, N] or [P, N, N].
        positions_px: [M, 2] (y, x) of pixel N/2 of each patch.
    """
    padded = np.pad(truth, BORDER_PX, constant_values=1)
    # Ptychodus places the middle of a patch, between two pixels.
    there = positions_px - 0.5 + [BORDER_PX[0][0], BORDER_PX[1][0]] - (np.array(padded.shape) - 1) / 2
    places_m = there * PIXEL_M + CENTER_M
    pixel = PixelGeometry(PIXEL_M, PIXEL_M)
    metadata = ProductMetadata(
        name=name,
        comments="",
        detector_distance_m=1.0,
        photon_energy_eV=8000.0,
        probe_photon_count=PHOTONS,
        exposure_time_s=0.1,
        mass_attenuation_m2_per_kg=0.0,
        tomography_angle_deg=0.0,
    )
    return Product(
        metadata=metadata,
        probe_positions=ProbePositionSequence(
            [ProbePosition(index, float(x), float(y)) for index, (y, x) in enumerate(places_m)]
        ),
        probes=ProbeSequence(array=probe, opr_weights=None, pixel_geometry=pixel),
        object_=Object(array=padded, pixel_geometry=pixel, center=ObjectCenter(y_m=CENTER_M[0], x_m=CENTER_M[1])),
        losses=[],
    )


def replace_object(product: Product, array: np.ndarray) -> Product:
    """The product with another object at the same place."""
    given = product.object_
    placed = Object(array=array, pixel_geometry=given.get_pixel_geometry(), center=given.get_center())
    return dataclasses.replace(product, object_=placed)


def simulate_counts(
    product: Product, *, bad: np.ndarray | None = None, poison: int | None = None
) -> AssembledDiffractionData:
    """Poisson counts of a product, uint16; what is bad may be poisoned."""
    clean = generate_diffraction_data(product)
    expected = clean.get_patterns()
    # Their propagator does not conserve photons.
    counts = np.random.default_rng(0).poisson(expected * PHOTONS / expected.sum(axis=(1, 2)).mean()).astype(np.uint16)
    bad = clean.get_bad_pixels() if bad is None else bad
    if poison is not None:
        counts[:, bad] = poison
    return AssembledDiffractionData(clean.get_indexes(), counts, clean.get_pixel_geometry(), bad)


def make_reconstruct_input(product: Product, data: AssembledDiffractionData) -> ReconstructInput:
    """What a reconstructor is given."""
    return ReconstructInput(data.get_patterns(), data.get_bad_pixels(), product)
