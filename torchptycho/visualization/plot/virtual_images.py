"""Figure of the first images of an electron scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from torchptycho.analysis.stem import VirtualImages
from torchptycho.core.scan import Scan
from torchptycho.visualization.plot.figure import FONT_SIZE, ORANGE, make_figure, save
from torchptycho.visualization.plot.panels import add_colour_bar, add_scale_bar, draw_image, draw_pattern
from torchptycho.visualization.plot.phase_colors import add_colour_wheel, draw_complex, sample_wheel_colours

__all__ = ["plot_virtual_images"]


def plot_virtual_images(scan: Scan, images: VirtualImages, path: str | Path) -> Path:
    """Draw mean pattern with the bright-field disc, virtual bright and dark field, centre of mass and its integral."""
    figure = make_figure(10.6, 6.9)
    axes = figure.subplots(2, 3)
    disc, rotation = images.disc, images.rotation
    found = "no bright-field disc found" if disc is None else f"bright-field disc of {disc.radius_px:.1f} px"
    draw_pattern(axes[0, 0], images.mean_pattern, scan.mask, f"mean pattern, {found}", "per px")
    if disc is not None:
        y, x = disc.center_px
        axes[0, 0].add_patch(Circle((x, y), disc.radius_px, fill=False, color=ORANGE, linewidth=1.2))
    pixel_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    step_m = None if pixel_m is None else pixel_m * images.step_px
    _draw(axes[0, 1], images.bright_field, "virtual bright field", "part of the frame", step_m)
    _draw(axes[0, 2], images.dark_field, "virtual dark field", "part of the frame", step_m)
    y, x = images.center_of_mass_px
    valid = np.isfinite(y)
    draw_complex(axes[1, 0], np.where(valid, x + 1j * y, 0), "centre of mass, its direction as hue")
    add_colour_wheel(axes[1, 0])
    turn = f"turned by {rotation.rotation_deg:.1f} degrees" + (", x and y exchanged" if rotation.swap_xy else "")
    _draw(axes[1, 1], images.integrated, f"integrated centre of mass, {turn}", "phase, arb. u.", step_m)
    axes[1, 2].axis("off")
    axes[1, 2].text(0, 0.95, _describe(images, scan), va="top", fontsize=FONT_SIZE, transform=axes[1, 2].transAxes)
    figure.suptitle(scan.source.rsplit("/", 1)[-1], fontsize=FONT_SIZE + 2)
    return save(figure, path, ("gray", "inferno"), sample_wheel_colours())


def _draw(axis: Axes, image: np.ndarray, title: str, unit: str, step_m: float | None) -> None:
    valid = np.isfinite(image)
    low, high = (float(edge) for edge in np.percentile(image[valid], (0.5, 99.5)))
    drawn = draw_image(axis, np.where(valid, image, 0), valid, "gray", (low, max(high, low + 1e-12)), title)
    add_colour_bar(axis, drawn, unit)
    add_scale_bar(axis, image.shape[1], step_m)


def _describe(images: VirtualImages, scan: Scan) -> str:
    rotation = images.rotation
    lines = [
        f"grid of {' x '.join(str(n) for n in images.bright_field.shape)} points, {images.step_px:.3g} px apart",
        f"rotation of the scan: {rotation.rotation_deg:.1f} degrees" + (" after --swap-xy" if rotation.swap_xy else ""),
        f"curl left: {100 * rotation.curl_fraction:.0f} % of that of the worst angle",
        f"(with the axes {'as they are' if rotation.swap_xy else 'exchanged'}: "
        f"{100 * rotation.curl_fraction_other:.0f} %)",
    ]
    wavelength_m, pixel_m = scan.geometry.wavelength_m, scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    if images.disc is not None and wavelength_m is not None and pixel_m is not None:
        angle_mrad = 1e3 * images.disc.radius_px * wavelength_m / (scan.n_px * pixel_m)
        lines.append(f"semi-angle of the disc: {angle_mrad:.3g} mrad")
    return "\n".join(lines)
