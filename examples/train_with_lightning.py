"""Train with your own Lightning Trainer: nothing of the package stands between you and it.

python examples/train_with_lightning.py scan.npz
"""

from __future__ import annotations

import argparse

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

import torchptycho as tp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", help="scan file (NPZ)")
    parser.add_argument("--out", default="runs/lightning", help="folder of the run")
    parser.add_argument("--epochs", type=int, default=30)
    given = parser.parse_args()

    L.seed_everything(0)
    config = tp.RunConfig(train=tp.TrainConfig(schedule="cosine", optimizer="adamw"))
    scan = tp.read_scan(given.scan)
    store = tp.prepare([scan], config, f"{given.out}/store")

    module = tp.PtychoPINN.for_store(store, config)
    data = tp.PtychoDataModule(store, batch_size=64)
    keep = ModelCheckpoint(dirpath=given.out, filename="best", monitor=module.monitor)
    trainer = L.Trainer(max_epochs=given.epochs, gradient_clip_val=1.0, callbacks=[keep], default_root_dir=given.out)
    trainer.fit(module, data)

    writer = tp.CanvasWriter(store.tensors["positions_px"])
    L.Trainer(callbacks=[writer], logger=False).predict(module, data, return_predictions=False)
    image = writer.canvas.finish()
    tp.write_reconstruction(image, f"{given.out}/image.npz")
    tp.plot_reconstruction(image, f"{given.out}/image.png", truth=scan.truth)


if __name__ == "__main__":
    main()
