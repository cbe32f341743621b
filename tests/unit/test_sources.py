"""Networks from timm, from checkpoints, and from names that are none (extra `train`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mkf.demo import DEMO_BASELINE
from mkf.errors import InputError, SourceError
from mkf.networks.sources import Options, load_source

torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")

from mkf.networks import zoo  # noqa: E402  (needs torch)
from mkf.networks.checkpoints import checkpoint_network  # noqa: E402

ATTO = "convnextv2_atto"


@pytest.fixture(scope="module")
def atto() -> Any:
    """A small network of timm's with 7 classes."""
    torch.manual_seed(0)
    return zoo.import_timm().create_model(ATTO, num_classes=7).eval()


def test_random_weights_follow_the_seed_and_say_so() -> None:
    first, again, other = (zoo.random_network(ATTO, seed=seed) for seed in (0, 0, 1))
    weights = [network.module.state_dict()["stem.0.weight"] for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.random_weights
    assert first.expected_top1 is None
    assert first.license == "none: random weights"
    assert first.labels is not None
    assert first.labels[0] == "tench, Tinca tinca"
    assert first.class_ids is not None
    assert first.class_ids[0] == "n01440764"
    assert first.preprocessing.input_size == (224, 224)
    assert first.preprocessing.crop_fraction == 0.875


def test_an_unknown_name_suggests_known_ones() -> None:
    with pytest.raises(
        SourceError, match=r"no network 'convnextv2_ato'; did you mean convnextv2_a"
    ):
        zoo.random_network("convnextv2_ato", seed=0)


def test_a_hub_out_of_reach_names_the_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.import_timm()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=r"checkpoint:FILE.*--random-weights"):
        zoo.pretrained_network("convnextv2_atto.fcmae_ft_in1k")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_finds_its_architecture(
    tmp_path: Path, atto: Any, suffix: str, wrapped: bool
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    weights = atto.state_dict()
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3} if wrapped else weights, path)
    loaded = checkpoint_network(path, architecture=None)
    assert loaded.module.pretrained_cfg["architecture"] == ATTO
    assert loaded.classes == 7
    assert loaded.labels is None
    assert not loaded.random_weights
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), atto(images))


def test_a_checkpoint_with_the_papers_names_is_found(tmp_path: Path, atto: Any) -> None:
    """The authors' own code names the same weights otherwise, and stores GRN's as (1, 1, 1, C)."""
    published = {}
    for name, value in atto.state_dict().items():
        name = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        for timms, theirs in (
            ("stem.", "downsample_layers.0."),
            ("conv_dw", "dwconv"),
            ("mlp.grn.weight", "grn.gamma"),
            ("mlp.grn.bias", "grn.beta"),
            ("mlp.fc", "pwconv"),
            ("head.norm", "norm"),
            ("head.fc", "head"),
        ):
            name = name.replace(timms, theirs)
        if "pwconv" in name and value.ndim == 4:
            value = value[:, :, 0, 0]  # linear layers there, 1x1 convolutions in timm's Atto
        published[name] = value.reshape(1, 1, 1, -1) if "grn" in name else value
    torch.save({"model": published}, tmp_path / "convnextv2_atto_1k_224_ema.pt")
    path = tmp_path / "convnextv2_atto_1k_224_ema.pt"
    loaded = checkpoint_network(path, architecture=None)
    assert "cc-by-nc-4.0" in loaded.license
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(images), atto(images))


def test_a_named_architecture_may_have_any_head(tmp_path: Path) -> None:
    name = "mobilenetv3_small_050"
    network = zoo.import_timm().create_model(name, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "mobile.pth")
    loaded = checkpoint_network(tmp_path / "mobile.pth", architecture=name)
    assert loaded.classes == 3
    with pytest.raises(SourceError, match=f"do not have the names and shapes of {ATTO}'s"):
        checkpoint_network(tmp_path / "mobile.pth", architecture=ATTO)


def test_a_checkpoint_of_the_demo_network_is_found(tmp_path: Path) -> None:
    from mkf.demo import demo_preprocessing
    from mkf.demo.architecture import create_network

    path = tmp_path / "demo.pt"
    torch.save(create_network().state_dict(), path)
    loaded = checkpoint_network(path, architecture=None)
    assert loaded.classes == 10
    assert loaded.preprocessing == demo_preprocessing()


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"weight": Malicious(tmp_path / "made")}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="without running its code"):
        checkpoint_network(tmp_path / "evil.pth", architecture=None)
    assert not (tmp_path / "made").exists()


def test_unusable_checkpoints_are_refused(tmp_path: Path, atto: Any) -> None:
    with pytest.raises(InputError, match="is not there"):
        checkpoint_network(tmp_path / "nowhere.pt", architecture=None)
    for name in ("noise.safetensors", "noise.pth"):
        (tmp_path / name).write_bytes(b"\1\2\3 no weights")
        with pytest.raises(InputError, match=name):
            checkpoint_network(tmp_path / name, architecture=None)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(InputError, match="no state dict"):
        checkpoint_network(tmp_path / "empty.pth", architecture=None)
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(SourceError, match="--architecture NAME"):
        checkpoint_network(tmp_path / "other.pth", architecture=None)
    weights = atto.state_dict() | {"stem.0.bias": torch.full((40,), torch.nan)}
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="not finite"):
        checkpoint_network(tmp_path / "nan.pth", architecture=ATTO)


@pytest.mark.parametrize("uri", ["", "resnet50", "onnx:", "s3:bucket", "demo:x"])
def test_an_unknown_source_lists_the_known_ones(uri: str) -> None:
    with pytest.raises(InputError, match="use demo, onnx:FILE, timm:NAME or checkpoint:FILE"):
        load_source(uri, Options())


def test_random_weights_go_with_timm_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="goes with timm:NAME"):
        load_source("demo", Options(random_weights=True))


def test_a_path_of_an_onnx_file_needs_no_scheme() -> None:
    plain = load_source(str(DEMO_BASELINE), Options())
    named = load_source(f"onnx:{DEMO_BASELINE}", Options())
    assert plain.model == named.model
