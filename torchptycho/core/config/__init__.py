"""Frozen, strict configuration: one dataclass per step, validated when it is built."""

from torchptycho.core.config.run import (
    SUPPORTED_N_PX as SUPPORTED_N_PX,
)
from torchptycho.core.config.run import (
    ExperimentConfig as ExperimentConfig,
)
from torchptycho.core.config.run import (
    GroupConfig as GroupConfig,
)
from torchptycho.core.config.run import (
    LogConfig as LogConfig,
)
from torchptycho.core.config.run import (
    LossConfig as LossConfig,
)
from torchptycho.core.config.run import (
    MappingConfig as MappingConfig,
)
from torchptycho.core.config.run import (
    ModelConfig as ModelConfig,
)
from torchptycho.core.config.run import (
    PrepareConfig as PrepareConfig,
)
from torchptycho.core.config.run import (
    ReadConfig as ReadConfig,
)
from torchptycho.core.config.run import (
    ReconstructConfig as ReconstructConfig,
)
from torchptycho.core.config.run import (
    RefineConfig as RefineConfig,
)
from torchptycho.core.config.run import (
    RunConfig as RunConfig,
)
from torchptycho.core.config.run import (
    SimulateConfig as SimulateConfig,
)
from torchptycho.core.config.run import (
    TrainConfig as TrainConfig,
)
from torchptycho.core.config.run import (
    frame_slice as frame_slice,
)
from torchptycho.core.config.run import (
    from_dict as from_dict,
)
from torchptycho.core.config.run import (
    load_config as load_config,
)
from torchptycho.core.config.run import (
    reading_of as reading_of,
)
from torchptycho.core.config.run import (
    save_config as save_config,
)
from torchptycho.core.config.run import (
    to_dict as to_dict,
)
