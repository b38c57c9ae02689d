"""Complex images in colour: the hue is the phase, the brightness the amplitude."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Complex, Float, UInt8
from matplotlib.axes import Axes

from torchptycho.visualization.plot.figure import SMALL_FONT_SIZE
from torchptycho.visualization.plot.panels import INTERPOLATION, style_panel

__all__ = [
    "add_colour_wheel",
    "complex_to_rgb",
    "draw_complex",
    "make_wheel_rgba",
    "phase_to_rgb",
    "sample_wheel_colours",
]

# Every hue of this lightness and chroma lies within sRGB, so that no phase looks brighter than another.
_LIGHTNESS, _CHROMA = 0.75, 0.12
_RED_RAD = math.radians(29.0)  # the OKLab hue of red is phase 0


def phase_to_rgb(phase_rad: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """Convert each phase to sRGB, 0 to 1: a circle of constant lightness and chroma in OKLab, red for phase 0.

    Reference: B. Ottosson, A perceptual color space for image processing (2020), https://bottosson.github.io/posts/oklab.
    """
    angle = np.asarray(phase_rad, dtype=np.float64) + _RED_RAD
    a, b = _CHROMA * np.cos(angle), _CHROMA * np.sin(angle)
    cones = np.stack(
        [
            _LIGHTNESS + 0.3963377774 * a + 0.2158037573 * b,
            _LIGHTNESS - 0.1055613458 * a - 0.0638541728 * b,
            _LIGHTNESS - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cones**3 @ to_linear.T, 0, 1)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def complex_to_rgb(image: Complex[np.ndarray, "h w"], top: float | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Convert to RGB: hue by phase, brightness by amplitude; 0 is black, `top` (default: maximum) the full colour."""
    amplitude = np.abs(image)
    top = float(amplitude.max(initial=0)) if top is None else top
    bright = np.clip(amplitude / (top or 1.0), 0, 1)
    rgb: np.ndarray = np.rint(255 * phase_to_rgb(np.angle(image)) * bright[..., None]).astype(np.uint8)
    return rgb


def make_wheel_rgba(n_px: int = 96) -> UInt8[np.ndarray, "n n 4"]:
    """Make the key to `complex_to_rgb`: a disc whose centre is 0 and whose rim is the largest amplitude; phase 0 to the
    right, growing counterclockwise. Transparent outside."""
    y, x = (np.indices((n_px, n_px)) - (n_px - 1) / 2) / (n_px / 2)
    disc = x - 1j * y
    rgb = complex_to_rgb(disc, 1.0)
    # The edge of the wheel fades over one pixel.
    alpha = np.clip((1 - np.abs(disc)) * n_px / 2 + 0.5, 0, 1)
    return np.concatenate([rgb, np.rint(255 * alpha).astype(np.uint8)[..., None]], axis=-1)


def sample_wheel_colours() -> UInt8[np.ndarray, "k 3"]:
    """Sample some of the wheel's colours, for a palette."""
    phase, bright = np.meshgrid(np.linspace(-math.pi, math.pi, 18, endpoint=False), np.linspace(0.2, 1, 5))
    return complex_to_rgb(bright * np.exp(1j * phase), 1.0).reshape(-1, 3)


def draw_complex(axis: Axes, image: Complex[np.ndarray, "h w"], title: str) -> None:
    axis.imshow(complex_to_rgb(image), interpolation=INTERPOLATION)
    style_panel(axis, title)


def add_colour_wheel(axis: Axes) -> None:
    """Draw the key next to an image, where its colour bar would be."""
    wheel = axis.inset_axes((1.09, 0.38, 0.22, 0.24))
    wheel.imshow(make_wheel_rgba(160), interpolation="antialiased")
    wheel.set_axis_off()
    for x, y, text in ((1.06, 0.5, "0"), (0.5, 1.08, "π/2"), (-0.06, 0.5, "π"), (0.5, -0.08, "−π/2")):
        ha = "left" if x > 1 else "right" if x < 0 else "center"
        va = "bottom" if y > 1 else "top" if y < 0 else "center"
        wheel.text(x, y, text, transform=wheel.transAxes, ha=ha, va=va, fontsize=SMALL_FONT_SIZE)
