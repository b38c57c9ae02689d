"""A session with Ptychodus' own core, in a program of its own: `python ptychodus_session.py FOLDER`.

FOLDER holds product.h5 and diffraction.h5. What came out is written there as answer.json and reconstructed.npz.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main(folder: Path) -> None:
    # Here, and not above: the processes that Ptychodus starts read this file again.
    import numpy as np
    from ptychodus.api.plugins import PluginRegistry

    answer: dict[str, object] = {}
    PluginRegistry.load_plugins()
    answer["plugins alone"] = [name for name in ("ptychodus.model", "torchptycho.core.config") if name in sys.modules]

    from ptychodus.model import ModelCore

    with ModelCore(log_level=logging.WARNING) as core:
        api, products = core.processing_core.processing_api, core.product_core.product_api
        answer["listed"] = list(api.available_reconstructors())
        answer["modules"] = [name for name in ("torch", "lightning", "ptycho_torch") if name in sys.modules]
        core.settings_registry.open_settings(folder / "settings.ini")
        data = core.workflow_api.load_assembled_diffraction_data(folder / "diffraction.h5")
        index = core.workflow_api.load_product(folder / "product.h5", diffraction=data).get_product_index()
        for name in ("train_data.npz", "test_data.npz"):
            api.export_training_data(folder / name, product_index=index, algorithm="ptychopinn-torch_pinn")
        losses = []
        reconstructor = core.processing_core.algorithm_parameter.get_current_reconstructor()
        answer["goal"] = reconstructor.get_progress_goal()
        answer["loaded before"] = reconstructor.is_model_loaded()
        for output in reconstructor.train(folder, folder):
            losses.append([len(output.training_loss), [loss.epoch for loss in output.validation_loss], output.progress])
        answer["losses"] = losses
        api.save_model_to_file(folder / f"model{api.get_model_file_extension()}")
        api.load_model_from_file(folder / "model.ckpt")
        answer["loaded after"] = reconstructor.is_model_loaded()
        place = api.reconstruct(product_index=index, block=True)
        found = products.get_item(place).get_product().object_
        given = products.get_item(index).get_product().object_
        answer["shapes"] = [list(found.get_array().shape), list(given.get_array().shape)]
        answer["same place"] = [
            found.get_center() == given.get_center(),
            found.get_pixel_geometry() == given.get_pixel_geometry(),
        ]
        answer["modules after"] = [name for name in ("torch", "lightning") if name in sys.modules]
        np.savez(folder / "reconstructed.npz", object=found.get_layer(0))
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
