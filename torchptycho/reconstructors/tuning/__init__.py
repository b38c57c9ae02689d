"""Search for options with which held-out counts of a scan are likeliest."""

from torchptycho.reconstructors.tuning.parameters import DEFAULT_PARAMETERS, PARAMETERS
from torchptycho.reconstructors.tuning.procedure import tune
from torchptycho.reconstructors.tuning.results import ParameterChange, TrialRecord, Tuning

__all__ = ["DEFAULT_PARAMETERS", "PARAMETERS", "ParameterChange", "TrialRecord", "Tuning", "tune"]
