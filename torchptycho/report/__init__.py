"""A page about a reconstruction: one HTML file with all its pictures inside, for any browser."""

from torchptycho.report.sources import report_of_network, report_of_refinement
from torchptycho.report.write import write_report

__all__ = ["report_of_network", "report_of_refinement", "write_report"]
