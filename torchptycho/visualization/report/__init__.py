"""A page about a reconstruction: one HTML file with all its pictures inside, for any browser."""

from torchptycho.visualization.report.page import write_report
from torchptycho.visualization.report.run_reports import report_of_network, report_of_refinement

__all__ = ["report_of_network", "report_of_refinement", "write_report"]
