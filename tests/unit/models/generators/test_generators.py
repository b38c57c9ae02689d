"""Networks: their shape, where they start, and how they are found."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from strategies import make_asymmetric_probe, normal
from tolerances import assert_close, relative_l2, tolerance
from torch import Tensor

from torchptycho.core.config import ModelConfig
from torchptycho.core.errors import ConfigError
from torchptycho.models.generators import Generator, GroupInput, build_generator, find_generator
from torchptycho.models.generators.cnn import CNN
from torchptycho.models.generators.pie_unet import PieUNet
from torchptycho.models.generators.resunet import ResUNet, estimate_object
from torchptycho.physics.diffraction import expected_counts, far_field, measurement
from torchptycho.physics.overlap import merge_canvas_px
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.physics.pie import GroupProjection, shift_probe, upsample_2x

NETWORKS = [
    ("cnn", 64),
    ("cnn", 128),
    ("cnn", 256),
    ("pie_unet", 32),
    ("pie_unet", 64),
    ("pie_unet", 128),
    ("pie_unet", 256),
    ("resunet", 32),
    ("resunet", 64),
    ("resunet", 128),
    ("resunet", 256),
]

# N, n_filters_scale, gridsize, probe_big -> trainable parameters of the original TensorFlow network.
PHOTON = 1e-6

CNN_PARAMETERS = {
    (64, 1, 1, True): 585_244,
    (64, 1, 1, False): 563_802,
    (64, 1, 2, True): 589_360,
    (64, 1, 2, False): 566_184,
    (64, 2, 1, True): 2_331_772,
    (64, 2, 1, False): 2_252_026,
    (64, 2, 2, True): 2_340_208,
    (64, 2, 2, False): 2_257_000,
    (128, 1, 1, True): 1_167_052,
    (128, 1, 1, False): 1_160_938,
    (128, 2, 1, True): 4_661_212,
    (128, 2, 2, False): 4_643_880,
    (256, 1, 1, True): 3_229_924,
    (256, 1, 2, True): 3_232_096,
}


def seeded(config: ModelConfig, n_px: int, gridsize: int = 1) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build_generator(config, n_px, gridsize)


def unit_beam(n_px: int, modes: int = 1, dtype: torch.dtype = torch.complex64) -> Tensor:
    """[1, P, N, N] in the units of the network's input."""
    return make_asymmetric_probe(n_px, modes, photons=(n_px / 2) ** 2, dtype=dtype)[None]


def diffraction(patches: Tensor, probe: Tensor) -> Tensor:
    """Amplitudes in the units of the network's input."""
    return expected_counts(patches, probe[:, None]).sqrt()


def group(amplitude: Tensor, probe: Tensor, offset_px: Tensor | None = None) -> GroupInput:
    """What a generator is given: all pixels good, and every frame in the same place if no offsets are named."""
    groups, members, n_px, _ = amplitude.shape
    offset_px = torch.zeros(groups, members, 2) if offset_px is None else offset_px
    canvas_px = merge_canvas_px(n_px, float(offset_px.abs().max()))
    good = torch.ones(groups, 1, n_px, n_px, dtype=torch.bool)
    return GroupInput(
        amplitude=amplitude,
        probe=probe,
        offset_px=offset_px,
        mask=good,
        canvas_px=canvas_px,
        intensity_per_count=torch.full((groups,), PHOTON),
        background=torch.zeros(groups),
    )


def levels(groups: int) -> tuple[Tensor, Tensor]:
    """One count in the input's units, and no background."""
    return torch.full((groups,), PHOTON), torch.zeros(groups)


def weak_object(n_px: int, strength: float, seed: int = 0) -> Tensor:
    """[1, 1, N, N] 1 + strength * (complex structure of about 4 px), without symmetry."""
    k = torch.fft.fftfreq(n_px, dtype=torch.float64)
    low_pass = torch.exp(-((k[:, None] ** 2 + k**2) / (2 * 0.08**2)))
    structure = torch.fft.ifft2(torch.fft.fft2(normal((1, 1, n_px, n_px), seed)) * low_pass)
    return 1 + strength * structure / structure.abs().square().mean().sqrt()


class TestOutput:
    @pytest.mark.contract("generator.output")
    @pytest.mark.parametrize(("name", "n_px"), NETWORKS)
    def test_output_is_one_complex_patch_per_frame(self, name: str, n_px: int) -> None:
        network = seeded(ModelConfig(generator=name, n_filters_scale=1), n_px, gridsize=2)
        amplitude = diffraction(torch.ones(1, 4, n_px, n_px, dtype=torch.complex64), unit_beam(n_px))
        with torch.no_grad():
            patches = network(group(amplitude, unit_beam(n_px)))
        assert patches.shape == (1, 4, n_px, n_px)
        assert patches.dtype == torch.complex64
        assert bool(torch.view_as_real(patches).isfinite().all())

    @pytest.mark.contract("generator.autocast")
    @pytest.mark.parametrize("name", ["cnn", "resunet", "pie_unet"])
    def test_output_is_complex64_under_bf16_autocast_and_trains(self, name: str) -> None:
        network = seeded(ModelConfig(generator=name, n_filters_scale=1), 64)
        probe = unit_beam(64)
        amplitude = diffraction(weak_object(64, 0.1).to(torch.complex64), probe)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            patches = network(group(amplitude, probe))
        assert patches.dtype == torch.complex64
        patches.abs().square().sum().backward()
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.isfinite().all())

    @pytest.mark.contract("generator.batch")
    @pytest.mark.parametrize("name", ["cnn", "resunet", "pie_unet"])
    def test_patches_of_a_group_do_not_depend_on_its_batch(self, name: str) -> None:
        network = seeded(ModelConfig(generator=name, n_filters_scale=1), 64).double()
        probes = torch.cat([unit_beam(64, dtype=torch.complex128), unit_beam(64, dtype=torch.complex128).flip(-1)])
        field = torch.cat([weak_object(64, 0.3, seed) for seed in (1, 2)])
        amplitude = diffraction(field, probes)
        with torch.no_grad():
            both = network(group(amplitude, probes))
            alone = torch.cat([network(group(amplitude[i : i + 1], probes[i : i + 1])) for i in range(2)])
        # The heads return float32.
        assert_close(both, alone, "single")


class TestCNN:
    @pytest.mark.contract("generator.cnn.parameters")
    @pytest.mark.parametrize("case", CNN_PARAMETERS, ids=str)
    def test_parameters_are_as_many_as_in_the_original_network(self, case: tuple[int, int, int, bool]) -> None:
        n_px, scale, gridsize, probe_big = case
        config = ModelConfig(generator="cnn", n_filters_scale=scale, probe_big=probe_big)
        with torch.device("meta"):
            network = build_generator(config, n_px, gridsize)
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == CNN_PARAMETERS[case]

    @pytest.mark.contract("generator.cnn.border")
    @pytest.mark.parametrize("probe_big", [False, True])
    def test_border_is_predicted_only_when_the_probe_is_big(self, probe_big: bool) -> None:
        network = seeded(ModelConfig(generator="cnn", n_filters_scale=1, probe_big=probe_big), 64)
        with torch.no_grad():
            patch = network(group(normal((1, 1, 64, 64), 1, torch.float32).abs(), unit_beam(64)))[0, 0]
        border = torch.ones(64, 64, dtype=torch.bool)
        border[16:48, 16:48] = False
        assert bool(patch[border].any()) == probe_big
        assert bool(patch[~border].all())

    @pytest.mark.contract("generator.cnn.bounds")
    def test_sigmoid_bounds_the_central_amplitude_by_one(self) -> None:
        network = seeded(ModelConfig(generator="cnn", n_filters_scale=1, probe_big=False), 64)
        with torch.no_grad():
            patch = network(group(100 * normal((2, 1, 64, 64), 1, torch.float32).abs(), unit_beam(64)))
        assert float(patch.abs().max()) <= 1 + tolerance("single")

    @pytest.mark.contract("generator.cnn.bounds")
    @pytest.mark.parametrize(
        ("activation", "value"),
        [
            ("sigmoid", 1 / (1 + math.e)),
            ("swish", -1 / (1 + math.e)),
            ("softplus", math.log(1 + 1 / math.e)),
            ("relu", 0),
        ],
    )
    def test_amplitude_and_phase_go_through_their_activations(self, activation: str, value: float) -> None:
        network = seeded(ModelConfig(generator="cnn", n_filters_scale=1, amplitude_activation=activation), 64)  # type: ignore[arg-type]
        assert isinstance(network, CNN)
        with torch.no_grad():
            for half, level in ((network.amplitude, -1.0), (network.phase, 0.3)):
                half.central.weight.zero_()
                half.central.bias.fill_(level)
            patch = network(group(torch.ones(1, 1, 64, 64), unit_beam(64)))[0, 0, 16:48, 16:48]
        phase = torch.tensor(math.pi * math.tanh(0.3))
        assert_close(patch, torch.full((32, 32), value) * torch.polar(torch.ones(()), phase), "single")


class TestResUNet:
    @pytest.mark.contract("generator.resunet.start")
    @pytest.mark.parametrize("n_px", [32, 64, 128])
    def test_untrained_network_sees_a_transparent_object(self, n_px: int) -> None:
        probe = unit_beam(n_px)
        amplitude = diffraction(weak_object(n_px, 0.5).to(torch.complex64), probe)
        with torch.no_grad():
            patches = seeded(ModelConfig(generator="resunet"), n_px)(group(amplitude, probe))
        assert 0 < relative_l2(patches, torch.ones_like(patches)) < 0.05

    @pytest.mark.contract("generator.resunet.start")
    def test_residual_blocks_begin_as_the_identity(self) -> None:
        network = ResUNet(32, 1, (8, 16, 16, 16))
        x = normal((1, 8, 4, 4), 1, torch.float32)
        with torch.no_grad():
            assert torch.equal(network.encoder[0](x), x)

    @pytest.mark.contract("generator.resunet.estimate-transparent")
    @pytest.mark.parametrize("modes", [1, 3])
    def test_first_estimate_of_a_transparent_object_is_transparent(self, modes: int) -> None:
        probe = unit_beam(32, modes, torch.complex128)
        amplitude = diffraction(torch.ones(1, 2, 32, 32, dtype=torch.complex128), probe)
        assert float(estimate_object(amplitude, probe).abs().max()) <= tolerance("double")

    @pytest.mark.contract("generator.resunet.estimate-weak")
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_first_estimate_shows_a_weak_object_where_the_beam_is(self, seed: int) -> None:
        probe = unit_beam(64, dtype=torch.complex128)
        field = weak_object(64, 0.01, seed)
        estimate = estimate_object(diffraction(field, probe), probe)
        weight = probe[0].abs().square().sum(0).sqrt()
        truth, found = weight * (field[0, 0] - 1), weight * estimate[0, 0]
        correlation = complex((truth.conj() * found).sum()) / float(truth.norm() * found.norm())
        assert correlation.real > 0.5
        assert abs(correlation.imag) < 0.2

    @pytest.mark.contract("generator.resunet.estimate-weak")
    def test_first_estimate_follows_the_object_and_not_its_mirror_image(self) -> None:
        probe = unit_beam(64, dtype=torch.complex128)
        field = torch.ones(1, 1, 64, 64, dtype=torch.complex128)
        field[..., 24:30, 36:41] = 1.01
        found = estimate_object(diffraction(field, probe), probe)[0, 0].real
        inside = float(found[24:30, 36:41].mean())
        for mirrored in (found.T, found.flip(0), found.flip(1), found.flip(0, 1)):
            assert inside > 2 * float(mirrored[24:30, 36:41].mean())
        # At most half of the change: one step of phase retrieval cannot tell the object from its twin.
        assert 0.001 < inside < 0.01


class TestPieUNet:
    def network(self, gridsize: int = 2, **options: int) -> PieUNet:
        found = seeded(ModelConfig(generator="pie_unet", n_filters_scale=1, **options), 32, gridsize)  # type: ignore[arg-type]
        assert isinstance(found, PieUNet)
        return found

    def seen(self, offsets_px: list[list[float]], strength: float = 0.3) -> tuple[Tensor, GroupInput]:
        """True patches of one object, and what the detector shows of them."""
        offset_px = torch.tensor([offsets_px])
        edge = merge_canvas_px(32, float(offset_px.abs().max()))
        field = weak_object(edge, strength)[0].to(torch.complex64)
        patches = extract(field, locate_corner(offset_px, 32, (-(edge // 2), -(edge // 2))), 32)
        probe = unit_beam(32)
        return patches, group(diffraction(patches, probe), probe, offset_px)

    @pytest.mark.contract("generator.pie_unet.start")
    def test_untrained_it_is_projection_at_half_and_then_at_full_resolution(self) -> None:
        truth, given = self.seen([[-3.0, 2.0], [3.0, -2.0], [2.0, 3.0], [-2.0, -3.0]])
        network = self.network(start_projections=7, finish_projections=4).eval()
        canvas_px = -(-given.canvas_px // network.multiple_px) * network.multiple_px
        arguments = (
            given.amplitude,
            given.probe,
            given.offset_px,
            given.mask,
            given.intensity_per_count,
            given.background,
            canvas_px,
        )
        coarse, fine = GroupProjection.at_half_resolution(*arguments), GroupProjection(*arguments)
        with torch.no_grad():
            found = network(given)
            rough, velocity = coarse.run(coarse.make_transparent_objects(), 7)
            assert velocity is not None
            classical = fine.extract_patches(fine.run(upsample_2x(rough), 5, upsample_2x(velocity))[0])
        assert_close(found, classical, "single")
        weight = given.probe[0].abs()
        assert relative_l2(found * weight, truth * weight) < 0.7 * relative_l2(
            weight.expand(truth.shape), truth * weight
        )

    @pytest.mark.contract("generator.pie_unet.agree")
    def test_patches_of_a_group_are_cut_from_one_object(self) -> None:
        _, given = self.seen([[-3.0, 2.0], [3.0, -2.0], [0.0, 0.0], [-3.0, 2.0]])
        with torch.no_grad():
            found = self.network()(given)[0]
        assert_close(found[0], found[3], "single")
        assert_close(found[0, 3:, : 32 - 2], found[2, : 32 - 3, 2:], "single")

    @pytest.mark.contract("generator.pie_unet.any-number")
    def test_same_weights_take_groups_of_any_size(self) -> None:
        shapes = [{name: value.shape for name, value in self.network(size).state_dict().items()} for size in (1, 3)]
        assert shapes[0] == shapes[1]

    @pytest.mark.contract("generator.pie_unet.finish")
    def test_finishing_projections_bring_the_counts_nearer_and_are_left_out_in_training(self) -> None:
        _, given = self.seen([[-3.0, 2.0], [3.0, -2.0], [2.0, 3.0], [-2.0, -3.0]])
        network = self.network()

        def misfit() -> float:
            with torch.no_grad():
                return relative_l2(diffraction(network(given), given.probe), given.amplitude)

        in_training = misfit()
        network.eval()
        assert misfit() < 0.9 * in_training
        network.finish_projections = 0
        assert misfit() == in_training


class TestProjection:
    @pytest.mark.contract("phys.projection.fixed")
    @pytest.mark.parametrize("modes", [1, 3])
    def test_what_explains_the_counts_is_left_as_it_is(self, modes: int) -> None:
        whole_px = torch.tensor([[[-2.0, 1.0], [2.0, -1.0]], [[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
        between_px = torch.tensor([[[0.25, -0.45], [0.0, 0.375]], [[-0.25, 0.125], [0.4, 0.3]]], dtype=torch.float64)
        probe = unit_beam(32, modes, torch.complex128)
        field = torch.cat([weak_object(40, 0.3, seed)[0] for seed in (1, 2)])
        patches = extract(field, locate_corner(whole_px, 32, (-20, -20)), 32)
        waves = patches[:, :, None] * shift_probe(probe, between_px)
        amplitude = measurement(far_field(waves)).sqrt()
        good = torch.ones(2, 1, 32, 32, dtype=torch.bool)
        projection = GroupProjection(
            amplitude, probe, whole_px + between_px, good, torch.full((2,), PHOTON), torch.zeros(2), 40
        )
        assert float(projection.gradient_step(field).abs().max()) < 1e-6
        assert float(projection.preconditioned_step(field).abs().max()) < 1e-6

    @pytest.mark.contract("phys.projection.fixed")
    def test_each_group_has_its_own_mask_probe_and_background(self) -> None:
        count = torch.Generator().manual_seed(0)
        offset_px = 4 * torch.rand(2, 3, 2, generator=count, dtype=torch.float64)
        offset_px = offset_px - offset_px.mean(1, keepdim=True)
        amplitude = torch.rand(2, 3, 32, 32, generator=count, dtype=torch.float64)
        mask = torch.rand(2, 1, 32, 32, generator=count) < 0.7
        probe = torch.cat([unit_beam(32, 1, torch.complex128), 0.5j * unit_beam(32, 1, torch.complex128)])
        photon, background = torch.tensor([PHOTON, 3 * PHOTON]), torch.tensor([0.0, 0.2])
        field = torch.cat([weak_object(40, 0.3, seed)[0] for seed in (1, 2)])
        both = GroupProjection(amplitude, probe, offset_px, mask, photon, background, 40)
        for group in (0, 1):
            own = slice(group, group + 1)
            alone = GroupProjection(
                amplitude[own], probe[own], offset_px[own], mask[own], photon[own], background[own], 40
            )
            for method in ("gradient_step", "preconditioned_step", "extract_patches"):
                assert_close(getattr(both, method)(field)[own], getattr(alone, method)(field[own]), "double")

    @pytest.mark.contract("phys.projection.between-pixels")
    def test_beam_between_pixels_is_where_it_is_said_to_be(self) -> None:
        def gaussian(y_px: float, x_px: float) -> Tensor:
            place = torch.arange(32, dtype=torch.float64) - 16
            y, x = place[:, None] - y_px, place - x_px
            return torch.exp(-(y.square() + 2 * x.square()) / 20) * torch.exp(0.2j * (y + 2 * x))

        moved = shift_probe(gaussian(0, 0)[None, None], torch.tensor([[[0.25, -0.5], [0.0, 0.375]]]).double())
        expected = torch.stack([gaussian(0.25, -0.5), gaussian(0.0, 0.375)])
        assert relative_l2(moved[0, :, 0], expected) < 1e-4

    @pytest.mark.contract("phys.projection.coarse")
    def test_half_the_resolution_has_the_same_object_at_every_second_pixel(self) -> None:
        offset_px = torch.tensor([[[-3.0, 2.25], [3.0, -2.0], [2.0, 3.0], [-2.5, -3.0]]], dtype=torch.float64)
        probe = unit_beam(64, dtype=torch.complex128)
        field = weak_object(80, 0.1, 3)[0]
        # Neither the beam nor the object has anything beyond the middle of the detector.
        low = (torch.fft.fftfreq(80).abs() < 0.12).double()
        field = torch.fft.ifft2(torch.fft.fft2(field) * (low[:, None] * low))
        corner_px = locate_corner(offset_px, 64, (-40, -40))
        whole = corner_px.round()
        waves = extract(field, whole, 64)[:, :, None] * shift_probe(probe, corner_px - whole)
        amplitude = measurement(far_field(waves)).sqrt()
        good = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        coarse = GroupProjection.at_half_resolution(amplitude, probe, offset_px, good, *levels(1), 80)
        asked = coarse.gradient_step(coarse.make_transparent_objects()).abs().max()
        assert float(coarse.gradient_step(field[:, ::2, ::2]).abs().max()) < 0.01 * float(asked)
        assert float(coarse.gradient_step(field[:, 1::2, ::2]).abs().max()) > 0.1 * float(asked)

    @pytest.mark.contract("phys.projection.doubled")
    def test_pixels_between_are_the_means_of_their_neighbours(self) -> None:
        rough = normal((2, 6, 6), 4, torch.complex128)
        found = upsample_2x(rough)
        assert torch.equal(found[:, ::2, ::2], rough)
        assert_close(found[:, 1:-1:2, ::2], (rough[:, 1:] + rough[:, :-1]) / 2, "double")
        assert_close(found[:, ::2, 1:-1:2], (rough[..., 1:] + rough[..., :-1]) / 2, "double")
        assert torch.equal(found[:, -1, ::2], rough[:, -1])

    @pytest.mark.contract("phys.projection.slow-turns")
    def test_slow_turns_go_twice_as_far_and_nothing_else_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        probe, offset_px = unit_beam(32, dtype=torch.complex128), torch.zeros(1, 1, 2, dtype=torch.float64)
        amplitude = diffraction(torch.ones(1, 1, 32, 32, dtype=torch.complex128), probe)
        good = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        projection = GroupProjection(amplitude, probe, offset_px, good, *levels(1), 40)
        canvas, steps = (0.3j * weak_object(40, 1.0)[0].real).exp(), torch.arange(40, dtype=torch.float64)
        uniform = torch.full((1, 40, 40), 0.1, dtype=torch.float64)
        fast = torch.cos(math.pi / 40 * (steps + 0.5) * 30).expand(1, 40, 40) * 0.1
        for asked, factor in ((1j * uniform, 2.0), (uniform, 1.0), (1j * fast, 1.0)):
            monkeypatch.setattr(projection, "gradient_step", lambda _, asked=asked: canvas * asked)
            assert relative_l2(projection.preconditioned_step(canvas), factor * canvas * asked) < 0.01

    @pytest.mark.contract("phys.projection.mask")
    def test_masked_pixels_ask_for_nothing(self) -> None:
        probe, offset_px = unit_beam(32), torch.zeros(1, 1, 2)
        amplitude = diffraction(torch.ones(1, 1, 32, 32, dtype=torch.complex64), probe)
        mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        mask[..., 14:18, 14:18] = False
        stopped = amplitude.where(mask, 0.0)
        projection = GroupProjection(stopped, probe, offset_px, mask, *levels(1), 36)
        assert float(projection.gradient_step(projection.make_transparent_objects()).abs().max()) < 1e-5
        blind = GroupProjection(
            stopped, probe, offset_px, torch.ones_like(mask), torch.full((1,), PHOTON), torch.zeros(1), 36
        )
        assert float(blind.gradient_step(blind.make_transparent_objects()).abs().max()) > 0.01

    @pytest.mark.contract("phys.projection.background")
    def test_counts_of_a_background_are_not_put_down_to_the_object(self) -> None:
        probe, offset_px = unit_beam(32), torch.zeros(1, 1, 2)
        amplitude = diffraction(torch.ones(1, 1, 32, 32, dtype=torch.complex64), probe)
        brighter = (amplitude.square() + 0.1).sqrt()
        good = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        changes = []
        for level in (0.1, 0.0):
            intensity_per_count, background = torch.full((1,), PHOTON), torch.full((1,), level)
            projection = GroupProjection(brighter, probe, offset_px, good, intensity_per_count, background, 36)
            changes.append(float(projection.gradient_step(projection.make_transparent_objects()).abs().max()))
        assert changes[0] < 1e-5
        assert changes[1] > 0.01


class TestRegistry:
    @pytest.mark.contract("generator.registry.names")
    def test_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(
            ConfigError, match=r"one of .*cnn, .*pie_unet, .*resunet.*, or package.module:Class; found 'unet'"
        ):
            find_generator("unet")

    @pytest.mark.contract("generator.registry.names")
    def test_known_names_give_their_classes(self) -> None:
        assert [find_generator(name) for name in ("cnn", "resunet", "pie_unet")] == [CNN, ResUNet, PieUNet]

    @pytest.mark.contract("generator.registry.own")
    def test_network_of_a_user_is_found_by_module_and_class(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install_user_network(tmp_path, monkeypatch)
        network = build_generator(ModelConfig(generator="beamline_networks:Flat"), 48, 2)
        assert type(network).__name__ == "Flat"
        assert network(group(torch.ones(1, 4, 48, 48), unit_beam(48))).shape == (1, 4, 48, 48)

    @pytest.mark.contract("generator.registry.own")
    def test_network_of_a_user_is_found_by_its_entry_point(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install_user_network(tmp_path, monkeypatch)
        assert find_generator("flat").__name__ == "Flat"
        with pytest.raises(ConfigError, match=r"cnn, .*flat, pie_unet, .*resunet"):
            find_generator("unet")

    @pytest.mark.contract("generator.registry.refused")
    @pytest.mark.parametrize("name", ["math:pi", "torch.nn:Conv2d", "torchptycho.models.generators:build_generator"])
    def test_what_is_no_generator_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="expected a class derived from"):
            find_generator(name)

    @pytest.mark.contract("generator.registry.refused")
    @pytest.mark.parametrize("name", ["no_such_module_anywhere:Net", "torchptycho.models.generators:Transformer"])
    def test_what_cannot_be_imported_is_refused_by_its_name(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"generator '{name}' cannot be imported"):
            find_generator(name)

    @pytest.mark.contract("generator.sizes")
    @pytest.mark.parametrize(("name", "n_px"), [("cnn", 32), ("cnn", 96), ("resunet", 48), ("pie_unet", 48)])
    def test_unsupported_frame_size_is_refused_with_the_supported_ones(self, name: str, n_px: int) -> None:
        with pytest.raises(ConfigError, match=rf"takes frames of N = .*64, 128, 256 px; found N = {n_px}"):
            build_generator(ModelConfig(generator=name), n_px, 1)

    @staticmethod
    def install_user_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "beamline_networks.py").write_text(
            "import torch\n"
            "from torchptycho.models.generators import Generator\n"
            "class Flat(Generator):\n"
            "    supported_n_px = (48,)\n"
            "    @classmethod\n"
            "    def from_config(cls, config, n_px, channels):\n"
            "        return cls()\n"
            "    def forward(self, group):\n"
            "        return torch.complex(torch.ones_like(group.amplitude), torch.zeros_like(group.amplitude))\n"
        )
        info = folder / "beamline_networks-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beamline-networks\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[torchptycho.generators]\nflat = beamline_networks:Flat\n")
        monkeypatch.syspath_prepend(folder)
