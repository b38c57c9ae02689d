"""The oracle's network and training model are those of the original: weights, outputs, losses, gradients, one step."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from agreement import MISSING, assert_agree
from tolerances import tolerance

oracle = pytest.importorskip("tf_reference", reason=MISSING)

VARIANTS = {
    "probebig1": {},
    "probebig0": {"probe_big": False},
    "nopad": {"pad_object": False},
    "objbig0": {"object_big": False},
    "swish": {"amp_activation": "swish"},
}
CASES = [(gridsize, variant) for gridsize in (1, 2) for variant in VARIANTS]
INTERMEDIATE = ("amp", "phi", "obj", "padded_obj_2", "trimmed_obj", "padded_objs_with_offsets")
OUTPUTS = {"OUT_object": "trimmed_obj", "OUT_amp": "amplitude", "OUT_intensity": "intensity"}


def drawn_weights(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    """The recipe of the recorded models."""
    random = np.random.RandomState(seed)

    def draw(shape):
        if len(shape) == 1:
            return random.randn(*shape) * 0.05
        return random.randn(*shape) * math.sqrt(2 / math.prod(shape[:3])) * 0.9

    return [draw(shape).astype(np.float32) for shape in shapes]


def build(vectors, gridsize, variant):
    model = oracle.create_compiled_model(
        gridsize,
        64,
        probe=oracle.set_probe(vectors["probe_guess"], 4.0),
        intensity_scale=float(vectors["intensity_scale"]),
        n_filters_scale=1,
        **VARIANTS[variant],
    )
    model.set_weights(drawn_weights([array.shape for array in model.get_weights()], gridsize))
    return model


@pytest.fixture(params=CASES, ids=lambda case: f"gs{case[0]}-{case[1]}", scope="module")
def recorded(request, golden):
    """A model of the recorded weights, the variant's recorded values, and its inputs."""
    gridsize, variant = request.param
    vectors = golden(f"g13_model_gs{gridsize}_N64_nf1")
    values = {key.removeprefix(f"{variant}_"): value for key, value in vectors.items() if key.startswith(f"{variant}_")}
    return build(vectors, gridsize, variant), values, (vectors["input"], vectors["positions"])


@pytest.mark.contract("golden.network")
def test_weights_have_the_names_order_and_shapes_of_the_original(recorded):
    model, values, _ = recorded
    assert model.weight_names == list(values["weight_names"])
    assert [str(array.shape) for array in model.get_weights()] == list(values["weight_shapes"])


@pytest.mark.contract("golden.model")
def test_outputs_and_intermediate_values(recorded):
    model, values, batch = recorded
    prediction = model.predict(*batch)
    found = model.intermediate(*batch) | {key: getattr(prediction, name) for key, name in OUTPUTS.items()}
    for name in (*INTERMEDIATE, *OUTPUTS):
        # Some variants were recorded for the first sample only.
        assert_agree(found[name][: len(values[name])], values[name], f"golden.model.{name}", "golden_network")


@pytest.mark.contract("golden.model")
def test_losses(recorded):
    model, values, batch = recorded
    expected = json.loads(str(values["eval_json"]))
    found = model.evaluate(*batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_agree(np.float64(found[name]), np.float64(value), f"golden.model.{name}", "golden_network")


@pytest.mark.contract("golden.training")
@pytest.mark.parametrize("gridsize", [1, 2])
def test_gradients_and_one_step_of_adam(golden, gridsize):
    vectors = golden(f"g13_model_gs{gridsize}_N64_nf1")
    values = {key.removeprefix("probebig1_"): value for key, value in vectors.items()}
    model = build(vectors, gridsize, "probebig1")
    batch = (vectors["input"], vectors["positions"])
    for number, array in enumerate(model.get_weights()):
        assert_agree(array, values[f"w{number:02d}"], "golden.model.weights", "copied")
    assert_agree(vectors["probe_param"], oracle.set_probe(vectors["probe_guess"], 4.0), "golden.model.probe", "golden")

    intensity = model.predict(*batch).intensity
    likelihood = oracle.negloglik(batch[0] ** 2, intensity).mean(dtype=np.float64)
    assert_agree(likelihood, np.float64(values["nll_mean"]), "golden.model.nll", "golden_network")
    gradients = model.gradients(*batch)
    assert_agree(norms(gradients), values["grad_norms"], "golden.model.gradient", "likelihood_gradient")

    losses = model.train_on_batch(*batch)
    for name, value in json.loads(str(values["train_on_batch_json"])).items():
        assert_agree(np.float64(losses[name]), np.float64(value), f"golden.model.{name}", "golden_network")
    after = model.get_weights()
    found = norms(after)
    assert_agree(found, values["weight_norms_after_1_adam_step"], "golden.model.step", "likelihood")
    # What the step adds, of the kernel that was recorded whole. Adam's first step is the rate times the sign of each
    # weight's gradient, however small that is, so that only gradients above their own rounding errors determine it. Ten
    # times the tolerance of the whole gradient: single weights stray further than the mean, by up to 2e-3 of it here.
    step, expected = (array - values["w00"] for array in (after[0], values["w00_after_1_adam_step"]))
    size = np.abs(gradients[0])
    floor = 10 * tolerance("likelihood_gradient") * np.sqrt(np.mean(np.square(size, dtype=np.float64)))
    determined = size > floor
    assert determined.mean() > 0.95
    assert_agree(step[determined], expected[determined], "golden.model.step", "likelihood_gradient")
    assert np.abs(step).max() <= np.abs(expected).max() * (1 + tolerance("likelihood_gradient"))


def norms(arrays):
    return np.array([np.linalg.norm(array.astype(np.float64)) for array in arrays])


@pytest.fixture(scope="module")
def summaries(golden_folder):
    return golden_folder / "model_summaries"


def options_of(name):
    """Gridsize, N, and the other options that a summary's name, such as N64_nf2_gs1_probebig1, stands for."""
    size, scale, gridsize, border = map(int, re.findall(r"\d+", name))
    return (gridsize, size), {"n_filters_scale": scale, "probe_big": bool(border)}


@pytest.mark.contract("golden.network")
def test_parameters_are_as_many(summaries):
    found, expected = {}, {}
    for line in (summaries / "PARAM_COUNTS.txt").read_text().splitlines():
        name, count = line.split()
        expected[name] = int(count)
        sizes, options = options_of(name)
        found[name] = sum(array.size for array in oracle.create_network(*sizes, **options).get_weights())
    assert len(expected) > 10
    assert found == expected


@pytest.mark.contract("golden.network")
def test_convolutions_and_weights_are_those_of_the_summaries(summaries):
    paths = sorted(summaries.glob("N*.txt"))
    assert paths
    for path in paths:
        text = path.read_text()
        sizes, options = options_of(path.name)
        network = oracle.create_network(*sizes, **options)
        weights = re.findall(r"^(\S+/\w+) (\(.*\)) trainable=True$", text, re.MULTILINE)
        found = [str(array.shape) for array in network.get_weights()]
        assert list(zip(network.weight_names, found, strict=True)) == weights
        layers = re.findall(r"^(conv2d\w*|amp|phi|amp_padded|phase_padded|obj) .* out=(\(.*\))$", text, re.MULTILINE)
        assert len(layers) > len(weights) // 2
        for name, shape in layers:
            assert str(network.model.get_layer(name).output.shape) == shape, f"{path.name}: {name}"


@pytest.mark.contract("golden.network")
def test_outputs_have_the_sizes_of_the_summaries(summaries):
    for path in sorted(summaries.glob("N64*.txt")):
        found = re.findall(r"^(\w+) .* out=\(None, (\d+), (\d+), \d+\)$", path.read_text(), re.MULTILINE)
        declared = {name: (int(height), int(width)) for name, height, width in found}
        (gridsize, size), options = options_of(path.name)
        probe = np.ones((size, size), np.complex64)
        model = oracle.create_compiled_model(gridsize, size, probe=probe, intensity_scale=1.0, **options)
        frames, positions = np.ones((1, size, size, gridsize**2)), np.zeros((1, 1, 2, gridsize**2))
        for name, array in model.intermediate(frames.astype(np.float32), positions.astype(np.float32)).items():
            # The channels are wrong in the summaries wherever the arrays are flat.
            assert array.shape[1:3] == declared[name]
