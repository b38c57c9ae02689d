"""Diagnosis of a scan: faults that are seen, or whose correction makes held-out counts likelier."""

from torchptycho.reconstructors.diagnosis.findings import Diagnosis, Evidence, Finding, TrialResult
from torchptycho.reconstructors.diagnosis.procedure import diagnose

__all__ = ["Diagnosis", "Evidence", "Finding", "TrialResult", "diagnose"]
