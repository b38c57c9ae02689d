"""The bundle: what is in it, that it comes back as it was, and that nothing else is taken for one."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchptycho.core.config import ExperimentConfig, GroupConfig, ModelConfig, RunConfig, SimulateConfig, to_dict
from torchptycho.core.errors import ScanError, StoreError
from torchptycho.data.prepare import prepare
from torchptycho.data.simulation import simulate
from torchptycho.models.bundles import find_bundle, is_bundle, load_bundle, save_bundle
from torchptycho.models.checkpoints import find_checkpoint, load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN

CONFIG = RunConfig(
    group=GroupConfig(gridsize=2, n_groups=4),
    model=ModelConfig(n_filters_scale=1, probe_trainable=True),
    experiment=ExperimentConfig(scale_trainable=True, background_counts=0.5, background_trainable=True),
)
MEMBERS = ["manifest.json", "config.json", "probe.safetensors", "statistics.safetensors", "weights.safetensors"]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> PtychoPINN:
    """A module of two probe modes with everything that a checkpoint can hold."""
    torch.manual_seed(3)
    scan = simulate(SimulateConfig(n_px=32, object_px=64, n_frames=12, photons_per_frame=1e4, probe_modes=2))
    return PtychoPINN.for_store(prepare([scan], CONFIG, tmp_path_factory.mktemp("store") / "store"), CONFIG)


@pytest.fixture(scope="module")
def bundle(module: PtychoPINN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(module, tmp_path_factory.mktemp("bundle"))


def content(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def refusal(path: Path) -> str:
    """The one line with which a bundle is refused."""
    with pytest.raises(StoreError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.contract("bundle.round-trip")
def test_a_bundle_gives_the_same_module(module: PtychoPINN, bundle: Path) -> None:
    found = load_bundle(bundle)
    assert to_dict(found.config) == to_dict(module.config)
    assert dict(found.hparams) == dict(module.hparams)
    assert not found.training
    ours, theirs = module.state_dict(), found.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    assert found.probe_parts.requires_grad
    assert torch.equal(found.probe, module.probe)


@pytest.mark.contract("bundle.round-trip")
def test_two_bundles_of_a_module_are_the_same_to_the_byte(module: PtychoPINN, bundle: Path, tmp_path: Path) -> None:
    again = save_bundle(load_bundle(bundle), tmp_path / "again.zip")
    assert again.read_bytes() == bundle.read_bytes()


@pytest.mark.contract("bundle.content")
def test_members_are_json_and_safetensors_and_stored(module: PtychoPINN, bundle: Path) -> None:
    assert bundle.name == "wts.h5.zip"
    with zipfile.ZipFile(bundle) as archive:
        assert archive.namelist() == MEMBERS
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    members = content(bundle)
    manifest = json.loads(members["manifest.json"])
    assert manifest["backend"] == "pytorch"
    assert manifest["models"] == ["autoencoder", "diffraction_to_obj"]
    assert manifest["version"] == manifest["written_with"]["torchptycho"]
    assert json.loads(members["config.json"]) == to_dict(module.config)
    tensors = [safetensors.torch.load(members[name]) for name in MEMBERS[2:]]
    assert set(tensors[0]) == {"probe_parts"}
    assert set(tensors[1]) == {"input_scale", "photons_per_frame", "masks"}
    assert set.union(*(set(part) for part in tensors)) == set(module.state_dict())


@pytest.mark.contract("bundle.content")
@pytest.mark.parametrize(
    ("given", "written"),
    [("a", "a/wts.h5.zip"), ("b/c.zip", "b/c.zip"), ("d/wts.h5", "d/wts.h5.zip"), ("e/wts.h5.zip", "e/wts.h5.zip")],
)
def test_a_bundle_is_found_under_the_name_that_it_was_given(
    module: PtychoPINN, tmp_path: Path, given: str, written: str
) -> None:
    assert save_bundle(module, tmp_path / given) == tmp_path / written
    assert find_bundle(tmp_path / given) == tmp_path / written
    with pytest.raises(StoreError, match=r"expected a bundle \(wts\.h5\.zip\)"):
        find_bundle(tmp_path / "other")


@pytest.mark.contract("bundle.statistics")
def test_a_module_without_statistics_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no statistics"):
        save_bundle(PtychoPINN(to_dict(CONFIG), n_px=32), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.contract("bundle.whole")
def test_an_interrupted_write_leaves_the_old_bundle(
    module: PtychoPINN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_bundle(module, tmp_path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(ScanError, match="No space left"):
        save_bundle(module, tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.contract("bundle.checkpoint")
def test_a_bundle_is_told_by_its_content(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "network.ckpt"
    other.write_bytes(bundle.read_bytes())
    assert is_bundle(other)
    assert load_checkpoint(other).n_px == 32
    assert find_checkpoint(bundle.parent) == bundle


class _Trap:
    """What runs when a pickle of it is opened."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.contract("bundle.foreign")
@pytest.mark.parametrize(
    ("models", "writer"),
    [
        (["model.keras", "custom_objects.dill", "params.dill"], "the TensorFlow backend"),
        (["saved_model.pb", "params.dill"], "the TensorFlow backend"),
        (["model.pth", "params.dill"], "the PyTorch backend"),
        (["params.dill"], "by default its TensorFlow backend"),
    ],
)
def test_bundles_of_the_original_are_refused_with_their_writer(tmp_path: Path, models: list[str], writer: str) -> None:
    trap = pickle.dumps(_Trap())
    folders = ("autoencoder", "diffraction_to_obj")
    members = {"manifest.dill": trap} | {f"{folder}/{name}": trap for folder in folders for name in models}
    text = refusal(packed(tmp_path / "wts.h5.zip", members, zipfile.ZIP_DEFLATED))
    assert writer in text
    assert "original PtychoPINN" in text


@pytest.mark.contract("bundle.foreign")
def test_a_manifest_of_another_backend_is_refused_by_its_name(bundle: Path, tmp_path: Path) -> None:
    for key, value in (("backend", "tensorflow"), ("format_version", 2), ("format", "other")):
        members = content(bundle)
        manifest = json.loads(members["manifest.json"]) | {key: value}
        text = refusal(packed(tmp_path / f"{key}.zip", members | {"manifest.json": json.dumps(manifest).encode()}))
        assert f"{key}: expected" in text
        assert repr(value) in text


@pytest.mark.contract("bundle.damaged")
def test_a_truncated_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    path = tmp_path / "cut.zip"
    for size in (0, 10, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "damaged or truncated" in refusal(path)


@pytest.mark.contract("bundle.damaged")
def test_a_changed_byte_is_noticed_in_every_member(bundle: Path, tmp_path: Path) -> None:
    whole = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as archive:
        places = [info.header_offset + 30 + len(info.filename) + info.file_size // 2 for info in archive.infolist()]
    path = tmp_path / "changed.zip"
    for place in places:
        damaged = whole.copy()
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        assert "damaged or truncated" in refusal(path)


@pytest.mark.contract("bundle.damaged")
@given(place=st.floats(0, 1), value=st.integers(1, 255), tail=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_a_refusal_or_changes_nothing(
    module: PtychoPINN, bundle: Path, tmp_path: Path, place: float, value: int, tail: bool
) -> None:
    damaged = bytearray(bundle.read_bytes())
    # The directory of the archive is at its end, and small beside the weights.
    size = min(len(damaged), 600) if tail else len(damaged)
    damaged[len(damaged) - size + round(place * (size - 1))] ^= value
    path = tmp_path / "changed.zip"
    path.write_bytes(damaged)
    # Nothing but a StoreError may come out, and no other weights.
    with contextlib.suppress(StoreError):
        found = load_checkpoint(path).state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in module.state_dict().items())


@pytest.mark.contract("bundle.damaged")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"../../evil.py": b"x"}, "../../evil.py"),
        ({"/etc/cron.d/evil": b"x"}, "/etc/cron.d/evil"),
        ({"extra/": b""}, "extra/"),
        ({"weights.pkl": b"x"}, "weights.pkl"),
        ({"config.json": None}, "no config.json"),
        ({"manifest.json": None}, "manifest.json in a zip file"),
        ({"config.json": b"[" * 100_000}, "'config.json'"),
        ({"config.json": b"[1]"}, "a list instead of a table"),
        ({"config.json": b'{"model": {"generatr": "cnn"}}'}, "generatr"),
        ({"config.json": b" " * (1 << 21)}, "more than it can have"),
        ({"manifest.json": b"\xff"}, "'manifest.json'"),
        ({"probe.safetensors": b"\xff" * 64}, "'probe.safetensors'"),
        ({"probe.safetensors": safetensors.torch.save({"probe_parts": torch.zeros(1)})}, "expected probe_parts"),
        ({"weights.safetensors": safetensors.torch.save({"a": torch.zeros(1)})}, "does not load"),
    ],
)
def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path, change: dict[str, bytes | None], said: str) -> None:
    members = {name: data for name, data in (content(bundle) | change).items() if data is not None}
    assert said in refusal(packed(tmp_path / "b.zip", members))
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.zip"]


@pytest.mark.contract("bundle.damaged")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_px", 10**9),
        ("n_px", -1),
        ("n_scans", True),
        ("n_modes", "2"),
        ("domain", "x"),
        ("max_offset_px", 1e400),
        ("has_validation", 1),
        ("started_from", 3),
    ],
)
def test_arguments_that_cannot_be_are_refused(bundle: Path, tmp_path: Path, key: str, value: Any) -> None:
    members = content(bundle)
    manifest = json.loads(members["manifest.json"])
    manifest["module"][key] = value
    text = refusal(packed(tmp_path / "b.zip", members | {"manifest.json": json.dumps(manifest).encode()}))
    assert key in text or "probe_parts" in text


@pytest.mark.contract("bundle.damaged")
def test_a_member_may_neither_grow_nor_stand_twice(bundle: Path, tmp_path: Path) -> None:
    members = content(bundle)
    bomb = packed(tmp_path / "bomb.zip", members | {"weights.safetensors": bytes(1 << 22)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    assert "compressed" in refusal(bomb)
    twice = packed(tmp_path / "twice.zip", members)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", b"{}")
    assert "config.json twice" in refusal(twice)


@pytest.mark.contract("bundle.damaged")
def test_weights_of_another_dtype_are_refused(bundle: Path, tmp_path: Path) -> None:
    members = content(bundle)
    weights = safetensors.torch.load(members["weights.safetensors"])
    name = min(weights)
    weights[name] = weights[name].half()
    text = refusal(packed(tmp_path / "b.zip", members | {"weights.safetensors": safetensors.torch.save(weights)}))
    assert name in text
    assert "float16" in text
