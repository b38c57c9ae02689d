"""Batches of groups, gathered from a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from torchptycho.core.inputs import as_path
from torchptycho.data.batch import GroupBatch
from torchptycho.data.grouping import Groups, partition
from torchptycho.data.store import Store
from torchptycho.physics.patches import extract, locate_corner

__all__ = ["GroupDataset", "collate_unchanged"]


class GroupDataset(Dataset[GroupBatch]):
    """The groups of one split of a store; all groups of a batch are gathered at once.

    Arguments:
        store: where the frames are.
        split: "train", "val", or "predict": every frame once, in disjoint groups.
        with_truth: also give the object patches of a simulated scan.
        training_scan: stands in the batches of "predict" for the scan's index, because the statistics that a module
            knows are those of its training scans.
    """

    def __init__(
        self,
        store: Store | str | Path,
        split: Literal["train", "val", "predict"],
        *,
        with_truth: bool = False,
        training_scan: int | None = None,
    ) -> None:
        store = store if isinstance(store, Store) else Store.open(as_path(store, "store", "a store or its folder"))
        self.store = store
        self.with_truth = with_truth
        self._training_scan = training_scan if split == "predict" else None
        groups, is_first = _partition_all(store) if split == "predict" else (store.groups(split), None)
        self._frame_scan = store.tensors["frame_scan"]
        self._members = torch.from_numpy(groups.members)
        self._center_px = torch.from_numpy(groups.center_px)
        self._offset_px = torch.from_numpy(groups.offset_px)
        self._is_first = (
            torch.ones(groups.members.shape, dtype=torch.bool) if is_first is None else torch.from_numpy(is_first)
        )

    def __len__(self) -> int:
        return len(self._members)

    @property
    def max_offset_px(self) -> float:
        """Largest distance of a frame from its group's centre, along an axis."""
        return float(self._offset_px.abs().max()) if len(self) else 0.0

    def find_groups_in_scan(self, scan: int) -> list[int]:
        """Find the indices of the groups of one scan of the store."""
        return torch.nonzero(self.store.tensors["frame_scan"][self._members[:, 0]] == scan).flatten().tolist()

    def __getitem__(self, index: int | Sequence[int]) -> GroupBatch:
        """Return the batch of one group, or of all requested ones."""
        return self.__getitems__([index] if isinstance(index, int) else index)

    def __getitems__(self, indices: Sequence[int]) -> GroupBatch:
        """Return one `GroupBatch` of all requested groups, for the data loader."""
        rows = torch.as_tensor(indices)
        # index_select takes half as long as indexing, and the time budget of a batch is a quarter of a millisecond.
        members = self._members.index_select(0, rows)
        scan = self._frame_scan.index_select(0, members[:, 0])
        batch = GroupBatch(
            frames=self.store.frames[members],
            offset_px=self._offset_px.index_select(0, rows),
            center_px=self._center_px.index_select(0, rows),
            scan=scan if self._training_scan is None else torch.full_like(scan, self._training_scan),
            members=members,
            is_first=self._is_first.index_select(0, rows),
            batch_size=[len(rows)],
        )
        if self.with_truth:
            batch.truth = self._extract_truth(batch)
        return batch

    def _extract_truth(self, batch: GroupBatch) -> torch.Tensor:
        n_px = self.store.n_px
        positions_px = batch.center_px[:, None] + batch.offset_px
        patches = torch.empty(*batch.frames.shape, dtype=torch.complex64)
        for scan in np.unique(batch.scan.numpy()):
            rows = batch.scan == scan
            where = positions_px[rows]
            if self.store.has_patches(int(scan)):
                first = self.store.scans[int(scan)].first_frame
                patches[rows] = self.store.tensors["truth_patches"][str(int(scan))][batch.members[rows] - first]
                continue
            truth = self.store.tensors["truth"][str(int(scan))]
            patches[rows] = extract(truth, locate_corner(where.reshape(-1, 2), n_px), n_px).reshape(
                *where.shape[:2], n_px, n_px
            )
        return patches


def collate_unchanged(batch: Any) -> Any:
    """Return the batch, which `__getitems__` has collated; a module-level function, so that workers can import it."""
    return batch


def _partition_all(store: Store) -> tuple[Groups, np.ndarray]:
    positions_px = store.tensors["positions_px"].numpy()
    return partition(positions_px, store.gridsize, store.tensors["separate"].numpy())
