"""Frozen, strict configuration: one dataclass per step, validated when it is built.

Python, a YAML or TOML file and the command line all construct these same objects. Field names are unique over all
sections, so that the command line can offer them without a prefix.
"""

from torchptycho.core.config.data import GroupConfig, PrepareConfig
from torchptycho.core.config.experiment import ExperimentConfig, LogConfig
from torchptycho.core.config.model import SUPPORTED_N_PX, LossConfig, ModelConfig
from torchptycho.core.config.read import MappingConfig, ReadConfig, extract_read_config, parse_frame_slice
from torchptycho.core.config.reconstruct import ReconstructConfig
from torchptycho.core.config.refine import RefineConfig
from torchptycho.core.config.run import RunConfig, as_config, from_dict, load_config, save_config, to_dict
from torchptycho.core.config.simulate import SimulateConfig
from torchptycho.core.config.train import TrainConfig

__all__ = [
    "SUPPORTED_N_PX",
    "ExperimentConfig",
    "GroupConfig",
    "LogConfig",
    "LossConfig",
    "MappingConfig",
    "ModelConfig",
    "PrepareConfig",
    "ReadConfig",
    "ReconstructConfig",
    "RefineConfig",
    "RunConfig",
    "SimulateConfig",
    "TrainConfig",
    "as_config",
    "extract_read_config",
    "from_dict",
    "load_config",
    "parse_frame_slice",
    "save_config",
    "to_dict",
]
