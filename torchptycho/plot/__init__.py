"""Figures as PNG files, drawn without pyplot, so that no window, backend or global setting is involved.

Amplitudes are grey. Phases have a cyclic map (twilight) over -pi .. pi when they span more than pi, and otherwise a
perceptually uniform one (viridis) over their own range, where small differences can be seen. Complex images have their
phase as hue of constant lightness and their amplitude as brightness, with a colour wheel for a key. Pixels without
data are pale blue-grey, a colour of no map. Images have a scale bar instead of ticks.
"""

from torchptycho.plot.comparisons import plot_comparison
from torchptycho.plot.curves import plot_frc, plot_history
from torchptycho.plot.images import plot_overview, plot_reconstruction
from torchptycho.plot.patches import plot_patches
from torchptycho.plot.scans import plot_scan

__all__ = [
    "plot_comparison", "plot_frc", "plot_history", "plot_overview", "plot_patches", "plot_reconstruction", "plot_scan",
]  # fmt: skip
