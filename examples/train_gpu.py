"""Train with your own Lightning Trainer.

On one GPU, on four of one machine, on two machines with four each:

    python examples/train_gpu.py scan.npz
    torchrun --nproc-per-node 4 examples/train_gpu.py scan.npz --devices 4 --precision bf16-mixed
    srun --nodes 2 --ntasks-per-node 4 --gres gpu:4 python examples/train_gpu.py scan.npz --devices 4 --nodes 2

Every process uses batches of 64 frames, and gradients are averaged: with 8 GPUs, a step uses 512 frames.
"""

from __future__ import annotations

import argparse

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

import torchptycho as tp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", help="scan file (NPZ)")
    parser.add_argument("--out", default="runs/lightning", help="folder of the run")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    parser.add_argument("--devices", type=int, default=1, help="of each machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, 16-mixed")
    parser.add_argument("--workers", type=int, default=0, help="processes that load batches, for each device")
    parser.add_argument("--resume", help="checkpoint to go on from, also one written within an epoch")
    given = parser.parse_args()

    L.seed_everything(0)
    config = tp.RunConfig(train=tp.TrainConfig(schedule="cosine", optimizer="adamw"))
    scan = tp.read_scan(given.scan)
    # All processes may do this at once: the first store to be complete is everybody's.
    store = tp.prepare([scan], config, f"{given.out}/store")

    module = tp.PtychoPINN.for_store(store, config)
    data = tp.PtychoDataModule(store, batch_size=64, num_workers=given.workers)
    keep = ModelCheckpoint(dirpath=given.out, filename="best", monitor=module.monitor)
    trainer = L.Trainer(
        accelerator=given.accelerator,
        devices=given.devices,
        num_nodes=given.nodes,
        precision=given.precision,
        max_epochs=given.epochs,
        gradient_clip_val=1.0,
        callbacks=[keep, LearningRateMonitor("step")],
        default_root_dir=given.out,
    )
    trainer.fit(module, data, ckpt_path=given.resume, weights_only=True)

    if trainer.world_size > 1:
        if trainer.is_global_zero:
            print(f"now: torchptycho reconstruct {keep.best_model_path} {given.scan}")
        return
    writer = tp.CanvasWriter(store.tensors["positions_px"])
    L.Trainer(accelerator=given.accelerator, devices=1, callbacks=[writer], logger=False).predict(
        module, data, return_predictions=False
    )
    image = writer.canvas.finish()
    tp.write_reconstruction(image, f"{given.out}/image.npz")
    tp.plot_reconstruction(image, f"{given.out}/image.png", truth=scan.truth)


if __name__ == "__main__":
    main()
