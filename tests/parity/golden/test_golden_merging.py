"""The oracle merges the patches of a group as the original did."""

from __future__ import annotations

import pytest
from agreement import MISSING, assert_agree

oracle = pytest.importorskip("tf_reference", reason=MISSING)

pytestmark = pytest.mark.contract("golden.merging")

gridsizes = pytest.mark.parametrize("prefix", ["gs1_", "gs2_", "gs3_"])


@gridsizes
@pytest.mark.parametrize("suffix", ["", "_uncentred"])
def test_sum_of_the_patches(golden, prefix, suffix):
    vectors = golden("g09_reassemble_patches")
    channels, offsets = vectors[f"{prefix}channels"].real, vectors[f"{prefix}offsets{suffix}"]
    found = oracle.reassemble_patches_position_real(channels, offsets, int(vectors[f"{prefix}padded_size"]))
    assert_agree(found, vectors[f"{prefix}sum_real{suffix}"], "golden.merging", "golden")


@gridsizes
def test_denominator(golden, prefix):
    vectors = golden("g09_reassemble_patches")
    channels, offsets = vectors[f"{prefix}channels"], vectors[f"{prefix}offsets"]
    found = oracle.mk_norm(channels, offsets, int(vectors[f"{prefix}padded_size"]))
    assert_agree(found, vectors[f"{prefix}mk_norm"], "golden.merging", "golden")


@gridsizes
@pytest.mark.parametrize(
    ("patches", "recorded"),
    [
        ("channels", "reassembled"),
        ("channels", "ReassemblePatchesLayer"),
        ("channels_zeroborder", "reassembled_zeroborder"),
    ],
)
def test_merged_object(golden, prefix, patches, recorded):
    vectors = golden("g09_reassemble_patches")
    channels, offsets = vectors[f"{prefix}{patches}"], vectors[f"{prefix}offsets"]
    found = oracle.reassemble_patches(channels, offsets, int(vectors[f"{prefix}padded_size"]))
    assert_agree(found, vectors[f"{prefix}{recorded}"], "golden.merging", "golden")


@gridsizes
def test_large_batches_collapse_into_one_canvas(golden, prefix):
    vectors = golden("g09_reassemble_patches")
    channels, offsets = vectors[f"{prefix}channels"].real, vectors[f"{prefix}offsets"]
    size = int(vectors[f"{prefix}padded_size"])
    found = oracle.reassemble_patches_position_real(channels, offsets, size, batch_size=2)
    assert_agree(found, vectors[f"{prefix}batched_bs2_collapsed"], "golden.merging", "golden")


@pytest.mark.parametrize(("average", "recorded"), [(True, "average"), (False, "sum")])
def test_patches_at_their_nominal_places(golden, average, recorded):
    vectors = golden("g09_reassemble_patches")
    found = oracle.reassemble_patches_real(vectors["grid_channels"], 2, 4, average)
    assert_agree(found, vectors[f"reassemble_patches_real_{recorded}"], "golden.merging", "golden")
