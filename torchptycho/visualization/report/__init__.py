"""A page about a reconstruction: one HTML file with all its pictures inside, for any browser."""

from torchptycho.visualization.report.page import write_report
from torchptycho.visualization.report.run_reports import write_network_report, write_refinement_report

__all__ = ["write_network_report", "write_refinement_report", "write_report"]
