"""The section about a prior: what it did to the image, where photons are few, and what held-out counts say."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchptycho.core.config import RefineConfig, SimulateConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.data.simulation import simulate
from torchptycho.models.prior import load_prior, save_prior
from torchptycho.reconstructors.iterative import refine
from torchptycho.visualization.report import write_refinement_report, write_report
from torchptycho.visualization.report.html_blocks import Figure, Section
from torchptycho.visualization.report.prior_section import compute_sigma, make_prior_section

WITH_PRIOR = RefineConfig(
    epochs=12, probe_update=False, regularization="tv", regularization_strength=0.2, patience=None
)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate(SimulateConfig(n_px=32, object_px=72, n_frames=36, photons_per_frame=1e4))


@pytest.fixture(scope="module")
def image(scan: Scan) -> Reconstruction:
    return refine(scan, config=WITH_PRIOR, device="cpu")


def find_section(page: str) -> str | None:
    found = re.search(r'<section id="prior".*?</section>', page, re.DOTALL)
    return None if found is None else found[0]


def list_figures(section: Section) -> dict[str, Figure]:
    return {block.title: block for _, blocks in section.rows for block in blocks if isinstance(block, Figure)}


def decode(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(figure.source.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGBA"))[..., :3].astype(float)


@pytest.mark.contract("report.prior")
def test_image_is_shown_with_and_without_the_prior_that_acted(
    scan: Scan, image: Reconstruction, tmp_path: Path
) -> None:
    page = write_refinement_report(image, scan, tmp_path / "a.html", WITH_PRIOR, device="cpu").read_text("utf-8")
    section = find_section(page)
    assert section is not None
    for words in ("Phase with the prior", "Phase without", "Difference in sigma", "Sigma", "misfit without the prior"):
        assert words in section
    plain = refine(scan, config=WITH_PRIOR.without_prior())
    assert find_section(write_report(plain, scan, tmp_path / "b.html").read_text("utf-8")) is None


@pytest.mark.contract("report.prior")
def test_image_with_given_weights_is_shown_without_them_too(scan: Scan, tmp_path: Path) -> None:
    weights = save_prior(load_prior().network, tmp_path / "mine.safetensors", {})
    config = RefineConfig(epochs=4, regularization="learned", prior_weights=str(weights), patience=None)
    image = refine(scan, config=config, device="cpu")
    page = write_refinement_report(image, scan, tmp_path / "a.html", config, device="cpu").read_text("utf-8")
    assert "Phase without" in (find_section(page) or "")


@pytest.mark.contract("report.prior")
def test_difference_is_that_of_the_two_images_whatever_their_phase(image: Reconstruction) -> None:
    turned = dataclasses.replace(image, object=(image.object * np.exp(2.2j)).astype(np.complex64))
    section = make_prior_section(image, turned)
    assert section is not None
    figures = list_figures(section)
    np.testing.assert_allclose(decode(figures["Phase with the prior"]), decode(figures["Phase without"]), atol=2)
    assert figures["Difference in sigma"].bar is not None
    assert np.ptp(decode(figures["Difference in sigma"])[..., 0]) < 10
    hole = image.object.copy()
    y, x = (extent // 2 for extent in hole.shape)
    hole[y - 3 : y + 3, x - 3 : x + 3] *= 0.5
    changed = make_prior_section(image, dataclasses.replace(image, object=hole))
    assert changed is not None
    assert np.ptp(decode(list_figures(changed)["Difference in sigma"])[..., 0]) > 100


@pytest.mark.contract("report.prior")
def test_sigma_is_the_photon_noise_of_the_probe_at_the_positions(image: Reconstruction) -> None:
    sigma = compute_sigma(image)
    assert sigma.shape == image.object.shape
    brightest = np.unravel_index(np.argmax(image.coverage), sigma.shape)
    assert sigma[brightest] == sigma.min()
    assert image.probe is not None
    photons = (np.abs(image.probe) ** 2).sum() * 36
    known = np.isfinite(sigma)
    assert 0.5 * np.sum(sigma[known] ** -2.0) == pytest.approx(photons, rel=1e-4)


@pytest.mark.contract("report.prior")
def test_likelihood_of_held_out_counts_is_listed(image: Reconstruction) -> None:
    found = image.provenance["regularization"] | {
        "strengths": [0.0, 0.1],
        "gains": [0.13, 0.14],
        "learned_gain": 0.15,
    }
    section = make_prior_section(
        dataclasses.replace(image, provenance=image.provenance | {"regularization": found}), None
    )
    assert section is not None
    cells = {row[0]: row[1] for _, blocks in section.rows for b in blocks if b.kind == "table" for row in b.rows}
    assert cells["none"].startswith("0.13")
    assert cells["total variation of strength 0.1"].startswith("0.14")
    assert cells["learnt prior"].startswith("0.15")
    assert set(list_figures(section)) == {"Sigma"}
