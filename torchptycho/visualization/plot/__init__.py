"""Figures as PNG files, drawn without pyplot, so that no window, backend or global setting is involved.

Amplitudes are grey. Phases have a cyclic map (twilight) over -pi .. pi when they span more than pi, and otherwise a
perceptually uniform one (viridis) over their own range, where small differences can be seen. Complex images have their
phase as hue of constant lightness and their amplitude as brightness, with a colour wheel for a key. Pixels without
data are pale blue-grey, a colour of no map. Images have a scale bar instead of ticks.
"""

from torchptycho.visualization.plot.comparison_figures import plot_comparison
from torchptycho.visualization.plot.curves import plot_frc, plot_history
from torchptycho.visualization.plot.design_figures import plot_design
from torchptycho.visualization.plot.diagnosis_figures import plot_diagnosis
from torchptycho.visualization.plot.patch_grid import plot_patches
from torchptycho.visualization.plot.reconstruction_figures import plot_overview, plot_reconstruction
from torchptycho.visualization.plot.scan_figures import plot_scan
from torchptycho.visualization.plot.tuning_figures import plot_tuning
from torchptycho.visualization.plot.virtual_images import plot_virtual_images

__all__ = [
    "plot_comparison", "plot_design", "plot_diagnosis", "plot_frc", "plot_history", "plot_overview", "plot_patches",
    "plot_reconstruction", "plot_scan", "plot_tuning", "plot_virtual_images",
]  # fmt: skip
