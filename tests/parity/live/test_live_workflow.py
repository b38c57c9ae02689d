"""The original's names: dictionary, container and stitched image are the oracle's, in its layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agreement import MISSING, assert_agree, assert_same_indices
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from torchptycho.core.config import GroupConfig, ModelConfig, ReconstructConfig, RunConfig, SimulateConfig
from torchptycho.core.errors import ConfigError, GroupingError, ScanError
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.interop import original_layouts
from torchptycho.interop.workflow import PtychoDataContainer, RawData, reassemble_cdi_image
from torchptycho.models.lightning_module import PtychoPINN

oracle = pytest.importorskip("tf_reference", reason=MISSING)

N_PX = 16
COORDINATES = [
    "coords_offsets", "coords_relative", "coords_start_offsets", "coords_start_relative", "coords_nn",
    "coords_start_nn",
]  # fmt: skip


def arrays(seed: int, frames: int = 40) -> dict[str, np.ndarray]:
    """Amplitudes, positions before and after a correction, probe and object, none of them symmetric."""
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(10, 50, (2, frames))
    wave = rng.normal(size=(N_PX, N_PX)) + 1j * rng.normal(size=(N_PX, N_PX))
    return {
        "xcoords": x,
        "ycoords": y,
        "xcoords_start": x + rng.normal(size=frames),
        "ycoords_start": y - 0.5,
        "diff3d": rng.uniform(0, 3, (frames, N_PX, N_PX)).astype(np.float32),
        "probeGuess": wave.astype(np.complex64),
        "scan_index": np.zeros(frames, np.int64),
        "objectGuess": (rng.normal(size=(64, 72)) + 1j * rng.normal(size=(64, 72))).astype(np.complex64),
    }


def oracle_groups(given: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    names = ("xcoords", "ycoords", "diff3d", "objectGuess", "xcoords_start", "ycoords_start")
    grouped: dict[str, np.ndarray] = oracle.generate_grouped_data(
        **{name: given[name] for name in names if name in given}, N=given["diff3d"].shape[-1], **options
    )
    return grouped


def assert_same_dictionary(found: dict[str, Any], expected: dict[str, Any], name: str = "oracle_operator") -> None:
    """Same keys, shapes and dtypes; indices exact, the rest within 1e-5."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value is None:
            assert found[key] is None
            continue
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype), key
        if key == "nn_indices":
            assert_same_indices(found[key], value, "workflow.raw-data")
        else:
            assert_agree(found[key], value, f"workflow.{key}", "oracle_double" if key in COORDINATES else name)


@st.composite
def groupings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `generate_grouped_data`, in each of its modes."""
    gridsize = draw(st.sampled_from([1, 2, 3]))
    k = draw(st.integers(gridsize**2, gridsize**2 + 3))
    oversampled = gridsize > 1 and draw(st.booleans())
    return {
        "gridsize": gridsize,
        "K": k,
        "nsamples": draw(st.integers(41, 90) if oversampled else st.integers(1, 40)),
        "seed": draw(seeds),
        "sequential_sampling": draw(st.booleans()),
        "enable_oversampling": oversampled,
        "neighbor_pool_size": draw(st.sampled_from([None, k + 1])),
    }


@pytest.mark.contract("workflow.raw-data.dictionary")
@given(options=groupings())
def test_groups_are_the_oracles_in_every_mode(options):
    # Patches of an object would take all the time, for they take TensorFlow.
    inputs = {key: value for key, value in arrays(7).items() if key != "objectGuess"}
    found = RawData(**inputs).generate_grouped_data(N_PX, **options)
    assert_same_dictionary(found, oracle_groups(inputs, **options))


@pytest.mark.contract("workflow.raw-data.dictionary")
@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_patches_are_the_oracles(gridsize):
    inputs, options = arrays(2), {"gridsize": gridsize, "K": gridsize**2 + 1, "nsamples": 12, "seed": 3}
    assert_same_dictionary(RawData(**inputs).generate_grouped_data(N_PX, **options), oracle_groups(inputs, **options))


@pytest.mark.contract("workflow.raw-data.dictionary")
def test_groups_are_those_that_the_original_drew(golden, golden_folder: Path):
    vectors = golden("g01_grouping")
    cases = json.loads((golden_folder / "g01_grouping.json").read_text(encoding="utf-8"))
    raw = RawData.from_coords_without_pc(
        *(vectors[name] for name in ("xcoords", "ycoords", "diff3d", "probeGuess")), None, vectors["objectGuess"]
    )
    for name, case in cases.items():
        if case.get("type") == "ValueError":
            with pytest.raises(ValueError, match=r"neighbor_count|n_groups"):
                raw.generate_grouped_data(16, **case["args"])
            continue
        found = raw.generate_grouped_data(16, **{key: value for key, value in case.items() if key != "dtypes"})
        assert {key: f"{value.dtype}{value.shape}" for key, value in found.items()} == case["dtypes"]
        for key in (key for key in vectors if key.startswith(f"{name}__")):
            expected, own = vectors[key], found[key.removeprefix(f"{name}__").removesuffix("_first4")]
            if key.endswith("nn_indices"):
                assert_same_indices(own, expected, "workflow.raw-data")
            else:
                assert_agree(own[: len(expected)], expected, f"workflow.{key}", "oracle_operator")


@pytest.mark.contract("workflow.raw-data.dictionary")
def test_without_an_object_there_are_no_patches_and_a_scans_own_are_taken():
    inputs = {key: value for key, value in arrays(3).items() if key != "objectGuess"}
    options = {"gridsize": 2, "K": 5, "nsamples": 6, "seed": 1}
    found = RawData(**inputs).generate_grouped_data(N_PX, **options)
    assert_same_dictionary(found, oracle_groups(inputs, **options))
    own = (inputs["diff3d"] + 1j).astype(np.complex64)
    patches = RawData(**inputs, Y=own).generate_grouped_data(N_PX, **options)["Y"]
    np.testing.assert_array_equal(patches, original_layouts.channels_last(own[found["nn_indices"]]))


@pytest.mark.contract("workflow.raw-data.refused")
def test_arrays_that_do_not_fit_are_refused():
    inputs = arrays(3)
    for name, value in (
        ("xcoords", inputs["xcoords"][:-1]),
        ("scan_index", inputs["scan_index"][:-2]),
        ("diff3d", inputs["diff3d"][:, :, :-1]),
        ("probeGuess", inputs["probeGuess"] * np.nan),
        ("ycoords", inputs["ycoords"] * np.nan),
        ("metadata", {"domain": "photons"}),
    ):
        with pytest.raises(ScanError, match=name):
            RawData(**{**inputs, name: value})
    raw = RawData(**inputs)
    with pytest.raises(ScanError, match="N = 32"):
        raw.generate_grouped_data(32)
    with pytest.raises(ConfigError, match="nsamples"):
        raw.generate_grouped_data(N_PX, nsamples=0)
    with pytest.raises(GroupingError, match="more than the 40 frames"):
        raw.generate_grouped_data(N_PX, K=5, nsamples=41, gridsize=2)


def oracle_container(inputs: dict[str, np.ndarray], options: dict[str, Any], nphotons: float) -> Any:
    return oracle.load(oracle_groups(inputs, **options), inputs["probeGuess"], nphotons=nphotons)


def assert_same_container(found: PtychoDataContainer, expected: Any) -> None:
    for name in ("X", "Y_I", "Y_phi", "Y"):
        value = original_layouts.channels_first(getattr(expected, name).numpy())
        assert torch.as_tensor(value).dtype == getattr(found, name).dtype
        # An angle next to the cut may fall on either side of it: compared as numbers on the circle.
        pair = (getattr(found, name), torch.as_tensor(value))
        pair = tuple(torch.polar(torch.ones_like(a), a) for a in pair) if name == "Y_phi" else pair
        if name != "Y_phi":
            assert_agree(*pair, f"workflow.container.{name}", "oracle_operator")
        else:
            weight = found.Y_I > 1e-3
            assert_agree(pair[0] * weight, pair[1] * weight, "workflow.container.Y_phi", "oracle_operator")
    for name in ("coords_nominal", "coords_true", "coords", "probe"):
        value = torch.as_tensor(getattr(expected, name).numpy())
        assert (getattr(found, name).shape, getattr(found, name).dtype) == (value.shape, value.dtype)
        assert_agree(getattr(found, name), value, f"workflow.container.{name}", "oracle_operator")
    for name in ("global_offsets", "local_offsets", "norm_Y_I"):
        value = torch.as_tensor(getattr(expected, name))
        assert (getattr(found, name).shape, getattr(found, name).dtype) == (value.shape, value.dtype)
        assert_agree(getattr(found, name), value, f"workflow.container.{name}", "oracle_operator")
    np.testing.assert_array_equal(found.nn_indices.numpy(), expected.nn_indices)


@pytest.mark.contract("workflow.container.tensors")
@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_containers_hold_what_the_oracles_does_with_channels_first(gridsize):
    inputs, options = arrays(5), {"gridsize": gridsize, "K": gridsize**2 + 2, "nsamples": 9, "seed": 2}
    expected = oracle_container(inputs, options, 1e6)
    found = PtychoDataContainer.from_raw_data(RawData(**inputs), nphotons=1e6, **options)
    assert found.X.shape == (9, gridsize**2, N_PX, N_PX)
    assert_same_container(found, expected)
    names = ("norm_Y_I", "YY_full", "nn_indices", "global_offsets", "local_offsets")
    built = PtychoDataContainer(
        *(getattr(expected, name).numpy() for name in ("X", "Y_I", "Y_phi")),
        **{name: getattr(expected, name) for name in names},
        coords_nominal=expected.coords_nominal.numpy(),
        coords_true=expected.coords_true.numpy(),
        probeGuess=inputs["probeGuess"],
    )
    assert_same_container(built, expected)
    assert len(built) == len(found) == 9


@pytest.mark.contract("workflow.container.tensors")
def test_without_an_object_the_ground_truth_is_1():
    inputs = {key: value for key, value in arrays(5).items() if key != "objectGuess"}
    options = {"gridsize": 2, "K": 5, "nsamples": 4, "seed": 2}
    found = PtychoDataContainer.from_raw_data(RawData(**inputs), nphotons=1e9, **options)
    assert_same_container(found, oracle_container(inputs, options, 1e9))
    assert found.YY_full is None


@pytest.mark.contract("workflow.container.lazy")
def test_a_tensor_is_made_when_it_is_first_asked_for_and_stays():
    class Counted(RawData):
        reads = 0

        @property
        def diff3d(self) -> np.ndarray:
            self.reads += 1
            return self.scan.frames[:]

    raw = Counted(**arrays(1))
    container = PtychoDataContainer.from_raw_data(raw, gridsize=2, K=5, nsamples=6)
    assert (len(container), repr(container)) == (6, "PtychoDataContainer(6 groups of 4 frames 16x16)")
    assert container.global_offsets.dtype == torch.float64
    assert (raw.reads, container.materialised) == (0, {"global_offsets"})
    assert container.X is container.X
    assert container.materialised == {"global_offsets", "X"}
    reads = raw.reads
    assert container.Y is container.Y
    assert (raw.reads, container.materialised) == (reads, {"global_offsets", "X", "Y", "Y_I", "Y_phi"})


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PtychoPINN, RawData]:
    """A module that predicts frame by frame, and a scan of its own whose mean position is a whole pixel."""
    config = RunConfig(
        group=GroupConfig(gridsize=1),
        model=ModelConfig(n_filters_scale=1, start_projections=1, finish_projections=0),
        reconstruct=ReconstructConfig(agree_phases=False),
    )
    scan = simulate(SimulateConfig(n_px=32, object_px=80, n_frames=20, photons_per_frame=1e4))
    scan = dataclasses.replace(scan, positions_px=scan.positions_px - scan.positions_px.mean(axis=0) + [40, 41])
    torch.manual_seed(1)
    store = prepare([scan], config, tmp_path_factory.mktemp("store") / "store")
    return PtychoPINN.for_store(store, config), RawData.from_scan(scan)


@pytest.mark.contract("workflow.reassemble.original")
@pytest.mark.parametrize(
    "options", [{}, {"flip_x": True}, {"flip_y": True, "M": 12}, {"transpose": True, "M": 8}, {"coord_scale": 2.0}]
)
def test_the_stitched_image_is_the_oracles(untrained, options):
    module, raw = untrained
    amplitude, phase, results = reassemble_cdi_image(raw, None, **options, model=module)
    size = options.get("M", 20)
    patches = results["obj_tensor_full"]
    assert patches.shape == (20, 1, 32, 32)
    expected = oracle.reassemble_position(original_layouts.channels_last(patches), results["global_offsets"], size)[
        ..., 0
    ]
    signs = np.array([-1 if options.get("flip_y") else 1, -1 if options.get("flip_x") else 1])
    middle = signs * options.get("coord_scale", 1.0) * raw.scan.positions_px.mean(axis=0)
    image = results["reconstruction"]
    # Where the mean position lies on either canvas.
    there, here = np.array([len(expected) // 2] * 2), np.round(middle - image.origin_px).astype(int)
    reach = min(*there, *here, *(np.array(image.object.shape) - here))
    cut = [tuple(slice(m - reach, m + reach) for m in at) for at in (here, there)]
    assert reach > size
    covered = np.abs(expected[cut[1]]) > 1e-3
    assert covered.sum() > size**2
    assert_agree((image.object[cut[0]] * covered), expected[cut[1]] * covered, "workflow.reassemble", "oracle_operator")
    np.testing.assert_array_equal(amplitude, np.abs(image.object))
    np.testing.assert_array_equal(phase, np.angle(image.object))


@pytest.mark.contract("workflow.reassemble.options")
def test_options_of_the_stitching_are_judged(untrained):
    module, raw = untrained
    for size in (0, 7, 34):
        with pytest.raises(ConfigError, match="M: expected an even number from 2 to N = 32"):
            reassemble_cdi_image(raw, None, M=size, model=module)
    with pytest.raises(ConfigError, match="gridsize: expected 1, as trained; found 2"):
        reassemble_cdi_image(raw, {"gridsize": 2}, model=module)
