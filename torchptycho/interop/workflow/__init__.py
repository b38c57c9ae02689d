"""The calls, names and layouts that scripts of the original PtychoPINN use, as thin layers over this package.

    from torchptycho.interop.workflow import RawData, run_cdi_example

    train, test = RawData.from_files("train.npz", "test.npz")
    amplitude, phase, results = run_cdi_example(train, test, {"gridsize": 2, "nepochs": 20}, do_stitching=True)

Functions take a `Scan`, a `RawData` or a `PtychoDataContainer`, and nothing else; there is no global state.
"""

from torchptycho.interop.workflow.container import PtychoDataContainer
from torchptycho.interop.workflow.original_config import TABLE, run_config
from torchptycho.interop.workflow.raw_data import RawData
from torchptycho.interop.workflow.runners import (
    Data,
    as_scan,
    create_ptycho_data_container,
    load_inference_bundle,
    reassemble_cdi_image,
    run_cdi_example,
    train_cdi_model,
)
from torchptycho.models.bundles import BUNDLE, save_bundle

__all__ = [
    "BUNDLE",
    "TABLE",
    "Data",
    "PtychoDataContainer",
    "RawData",
    "as_scan",
    "create_ptycho_data_container",
    "load_inference_bundle",
    "reassemble_cdi_image",
    "run_cdi_example",
    "run_config",
    "save_bundle",
    "train_cdi_model",
]
