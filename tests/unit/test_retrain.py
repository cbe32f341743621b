"""`mkf retrain`: recipes, filters, checkpoints to start from, and runs that resume bit for bit."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from mkf.errors import InputError, SourceError, TrainingError
from mkf.idealized import idealized_kernel
from mkf.training.recipe import PRESETS

torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")

from safetensors.torch import load_file, save_file  # noqa: E402  (these need torch)
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from mkf.commands.retrain import retrain as command  # noqa: E402
from mkf.demo import DIRECTORY  # noqa: E402
from mkf.demo.architecture import create_network  # noqa: E402
from mkf.fitting import fit_keys, idealized_kernels  # noqa: E402
from mkf.keys import load_keys  # noqa: E402
from mkf.networks import zoo  # noqa: E402
from mkf.networks.torch_module import depthwise_convolutions  # noqa: E402
from mkf.training import retrain as retraining  # noqa: E402
from mkf.training.data import mend_posterizing, open_folders, posterize  # noqa: E402
from mkf.training.filters import place_filters, plain_weights  # noqa: E402
from mkf.training.frozen import freeze_idealized  # noqa: E402
from mkf.training.optimization import make_optimizer, make_schedule  # noqa: E402
from mkf.training.plan import Plan  # noqa: E402
from mkf.training.processes import join  # noqa: E402
from mkf.training.start import build, find_origin  # noqa: E402
from mkf.training.state import RunFolder  # noqa: E402

pytestmark = [
    # timm leaves it to the garbage collector to close the image files.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    # From Python 3.12 on; torch's loaders fork.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

RECIPE = replace(
    PRESETS["small"],
    epochs=2,
    batch_size=8,
    accumulate=2,
    warmup_epochs=1,
    base_learning_rate=0.02,
    seed=5,
)
PUBLISHED = PRESETS["published"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images to train with and 20 to validate, a bright bar's place telling the class of 10."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in range(10):
            (folder / split / f"class{label}").mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(60, size=(32, 32, 3)).astype(np.uint8)
                pixels[3 * label : 3 * label + 3] += 150
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def atto() -> Any:
    """A small ConvNeXt V2 of timm's, 7 classes, GRN not at 0."""
    torch.manual_seed(0)
    network = zoo.import_timm().create_model("convnextv2_atto", num_classes=7).eval()
    for name, value in network.named_parameters():
        if "grn" in name:
            torch.nn.init.normal_(value, std=0.1)
    return network


def plan(images: Path, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "assigned_by": "demo",
        "start_from": "demo",
        "data": images,
        "recipe": RECIPE,
    }
    return Plan(**(settings | changes))


def train(plan: Plan, out: Path, **options: Any) -> dict[str, Any]:
    summary = retraining.retrain(plan, out=out, device="cpu", **({"workers": 0} | options))
    assert summary is not None
    return summary


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def kernels(size: int) -> Any:
    return idealized_kernels(fit_keys(load_keys(), method="B"), size=size)


# Recipes


def test_the_published_preset_is_the_published_command() -> None:
    assert PUBLISHED.effective_batch(8) == 8192
    assert PUBLISHED.peak_learning_rate(8) == pytest.approx(8e-4 * 8192 / 256)
    assert PUBLISHED.peak_learning_rate(1) == pytest.approx(8e-4 * 1024 / 256)  # ConvNeXt V2's own
    assert replace(PUBLISHED, learning_rate=1e-3).peak_learning_rate(8) == 1e-3
    for preset in PRESETS.values():
        preset.check()


def test_the_learning_rate_follows_convnexts_formula() -> None:
    recipe, updates, peak = replace(PUBLISHED, epochs=6, warmup_epochs=2), 5, 0.02
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make_schedule(optimizer, recipe, updates)
    for update in range(6 * updates):
        # What main_finetune.py has before the update.
        epoch = update / updates
        expected = peak * epoch / 2
        if epoch >= 2:
            cosine = 0.5 * (1 + math.cos(math.pi * (epoch - 2) / 4))
            expected = 1e-6 + (peak - 1e-6) * cosine
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12), update
        schedule.step_update(update + 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)


def test_layers_learn_at_decaying_rates() -> None:
    torch.manual_seed(0)
    network = zoo.import_timm().create_model("convnextv2_tiny")
    scales = {
        name: group["lr_scale"]
        for group in make_optimizer(network, PUBLISHED, 1e-3).param_groups
        for name, parameter in network.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    # "single" of ConvNeXt V2's optim_factory.py: 18 blocks, the head above them.
    depths = (3, 3, 9, 3)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layer = sum(depths[:stage]) + block + 1
            name = f"stages.{stage}.blocks.{block}.conv_dw.weight"
            assert scales[name] == pytest.approx(0.9 ** (19 - layer)), name
    assert scales["head.fc.weight"] == 1


@pytest.mark.parametrize("layer_decay", [0.9, 1.0])
def test_scales_are_spared_weight_decay(layer_decay: float) -> None:
    network = create_network()
    fits = fit_keys(load_keys(), method="B")
    place_filters(network, "learned-scales", trained=create_network(), fits=fits)
    optimizer = make_optimizer(network, replace(PUBLISHED, layer_decay=layer_decay), 1e-3)
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) is (group["weight_decay"] > 0) for p in group["params"])
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0; give at least 1"),
        ({"warmup_epochs": 2}, "warm-up of 2 epochs does not fit into 2.*--warmup-epochs"),
        ({"batch_size": 7}, "7 images are odd"),
        ({"drop_path": 1.0}, "drop_path is 1.0; give at least 0, less than 1"),
        ({"weight_decay": math.nan}, "weight_decay is nan; give a finite number"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; give more than 0"),
    ],
)
def test_recipes_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(RECIPE, **changes).check()


# Filters


def test_frozen_filters_stay_to_the_bit_while_the_rest_is_trained(
    tmp_path: Path, images: Path
) -> None:
    recipe = replace(RECIPE, weight_decay=0.5)
    summary = train(plan(images, recipe=recipe), tmp_path)
    trained = build(find_origin("demo"))[0]
    expected = create_network()
    freeze_idealized(expected, trained=trained, kernels=kernels)
    filters = {name: layer.weight for name, layer in depthwise_convolutions(expected)}
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    files = [load_file(tmp_path / name) for name in ("model.safetensors", "last.safetensors")]
    for weights in (state["network"], state["average"], *files):
        for name, value in filters.items():
            assert torch.equal(weights[f"{name}.weight"], value), name
    before = trained.state_dict()
    for name, value in files[1].items():
        if not name.endswith("conv_dw.weight"):
            assert not torch.equal(value, before[name]), name
    moments = state["optimizer"]["state"].values()
    assert len(moments) == len(list(trained.parameters())) - len(filters)
    assert [layer["name"] for layer in summary["layers"]] == list(filters)
    assert summary["classifier"] == "kept"
    assert summary["licenses"] == {"start_from": "Apache-2.0", "assigned_by": "Apache-2.0"}


def test_learned_scales_move_and_are_written(tmp_path: Path, images: Path) -> None:
    summary = train(plan(images, filters="learned-scales"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == set(create_network().state_dict())  # plain names, to be exported
    fits = {fit.key: fit for fit in fit_keys(load_keys(), method="B")}
    with (tmp_path / "scales.csv").open(newline="") as file:
        scales = list(csv.DictReader(file))
    assert len(scales) == sum(layer["channels"] for layer in summary["layers"])
    counted = [int(row["key"]) for row in scales if row["layer"] == summary["layers"][0]["name"]]
    assert {str(key): counted.count(key) for key in set(counted)} == summary["layers"][0]["keys"]
    moved = []
    for row in scales[::9]:
        key, sigma_x, sigma_y = int(row["key"]), float(row["sigma_x"]), float(row["sigma_y"])
        moved.append(abs(sigma_x - fits[key].sigma_x))
        gamma = float(row["gamma"]) if key == 7 else None
        f = idealized_kernel(key, sigma_x, sigma_y, gamma)
        f = (f - f.mean()) / np.linalg.norm(f - f.mean())
        expected = float(row["a"]) * f + float(row["b"])
        found = weights[f"{row['layer']}.weight"][int(row["channel"]), 0]
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.median(moved) > 1e-4


def test_learned_filters_move_and_need_no_keys(tmp_path: Path, images: Path) -> None:
    summary = train(plan(images, filters="learned", assigned_by=None), tmp_path)
    assert summary["layers"] == []
    assert summary["kept"] is None
    before = build(find_origin("demo"))[0].state_dict()
    for name, value in load_file(tmp_path / "last.safetensors").items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("choice", ["frozen", "learned-scales", "learned"])
def test_depthwise_convolutions_run_in_float32_under_autocast(choice: Any) -> None:
    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise: list[Any] = []
            self.others: list[Any] = []

        def __torch_dispatch__(self, function: Any, _: Any, arguments: Any, options: Any) -> Any:
            if function is torch.ops.aten.convolution.default:
                images, weight = arguments[:2]
                groups = arguments[8]
                (self.depthwise if groups > 1 else self.others).append((images.dtype, weight.dtype))
            return function(*arguments, **(options or {}))

    network = create_network()
    fits = fit_keys(load_keys(), method="B")
    place_filters(network, choice, trained=create_network(), fits=fits)
    with torch.autocast("cpu", torch.bfloat16), Seen() as seen:
        network(torch.rand(2, 3, 32, 32)).float().sum().backward()
    assert seen.depthwise == [(torch.float32, torch.float32)] * 6
    assert set(seen.others) == {(torch.bfloat16, torch.bfloat16)}
    for _, layer in depthwise_convolutions(network):
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
        assert len(gradients) == {"frozen": 1, "learned-scales": 6, "learned": 2}[choice]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_plain_weights_leave_the_network_as_it_is() -> None:
    network = create_network()
    images = torch.rand(2, 3, 32, 32)
    fits = fit_keys(load_keys(), method="B")
    place_filters(network, "learned-scales", trained=create_network(), fits=fits)
    plain = create_network()
    plain.load_state_dict(plain_weights(network))
    assert torch.equal(plain(images), network(images))


# Runs


@pytest.mark.parametrize(("filters", "workers"), [("frozen", 0), ("learned-scales", 1)])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, filters: Any, workers: int
) -> None:
    chosen = plan(images, filters=filters, recipe=replace(RECIPE, epochs=3))
    whole = train(chosen, tmp_path / "whole", workers=workers)

    update = retraining._Run._update
    for saved in (1, 2):

        def stop(run: Any, batches: Any, number: int, *, after: int = saved) -> float:
            if run.epoch == after and number == 1:
                raise KeyboardInterrupt
            return update(run, batches, number)

        with monkeypatch.context() as patch:
            patch.setattr(retraining._Run, "_update", stop)
            with pytest.raises(TrainingError, match=f"{saved} of 3 epochs are saved.*--resume"):
                train(chosen, tmp_path / "cut", workers=workers, resume=True)
        assert len(rows(tmp_path / "cut")) == saved
        random.seed(saved)  # whatever state the process is in
        np.random.seed(saved)
        torch.manual_seed(saved)
    resumed = train(chosen, tmp_path / "cut", workers=workers, resume=True)

    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert [row["epoch"] for row in rows(tmp_path / "whole")] == ["1", "2", "3"]
    assert resumed["ema"] == whole["ema"]
    for name in ("model.safetensors", "last.safetensors"):
        ours, theirs = load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("cut", "whole")
    ]
    for (key, ours), theirs in zip(
        states[0]["optimizer"]["state"].items(),
        states[1]["optimizer"]["state"].values(),
        strict=True,
    ):
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"]), key


def test_accumulated_steps_are_one_larger_batch(tmp_path: Path, images: Path) -> None:
    still = replace(RECIPE, mixup=0.0, cutmix=0.0, random_erasing=0.0, drop_path=0.0)
    settings = ({"batch_size": 8, "accumulate": 2}, {"batch_size": 16, "accumulate": 1})
    losses = []
    for number, setting in enumerate(settings):
        train(plan(images, recipe=replace(still, **setting)), tmp_path / str(number))
        losses.append([float(row["train_loss"]) for row in rows(tmp_path / str(number))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][1]


def test_the_average_can_be_left_away(tmp_path: Path, images: Path) -> None:
    recipe = replace(RECIPE, ema_decay=0.0, layer_decay=1.0, mixup=0.0, cutmix=0.0)
    summary = train(plan(images, recipe=recipe), tmp_path)
    assert summary["ema"] is None
    low, high = summary["last"]["top1_interval"]
    assert low <= summary["last"]["top1"] <= high
    weights = [load_file(tmp_path / name) for name in ("model.safetensors", "last.safetensors")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_folder_keeps_one_run(tmp_path: Path, images: Path) -> None:
    summary = train(plan(images), tmp_path)
    with pytest.raises(TrainingError, match="holds a run already; go on with it by --resume"):
        train(plan(images), tmp_path)
    other = replace(RECIPE, seed=6, mixup=0.1)
    with pytest.raises(TrainingError, match=r"other settings \(recipe.mixup, recipe.seed\)"):
        train(plan(images, recipe=other), tmp_path, resume=True)
    with pytest.raises(TrainingError, match=r"other settings \(method\)"):
        train(plan(images, method="A"), tmp_path, resume=True)
    assert train(plan(images), tmp_path, resume=True) == summary  # nothing was left


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path, images: Path) -> None:
    wild = replace(RECIPE, learning_rate=1e20, warmup_epochs=0, clip_gradient=0.0)
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1, update 2 of 2.*--base-lr"):
        train(plan(images, recipe=wild), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_checkpoint_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"\1\2\3")
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be read.*remove it"):
        RunFolder(tmp_path, {}).load()


@pytest.mark.parametrize("content", ["[]", '"text"', "{"])
def test_settings_that_are_none_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(TrainingError, match=r"run\.json cannot be read .*--out"):
        RunFolder(tmp_path, {}).check(resume=True)


def test_several_processes_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"LOCAL_RANK.* with torchrun"), join("cpu"):
        pass


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"assigned_by": None}, InputError, "name it with --assigned-by"),
        ({"filters": "learned"}, InputError, "leave --assigned-by away"),
        ({"architecture": "convnextv2_atto"}, InputError, "goes with checkpoint:FILE"),
        ({"start_from": "resnet50"}, InputError, "use demo, timm:NAME or checkpoint:FILE"),
        ({"random_weights": True}, InputError, "goes with timm:NAME, not with demo"),
        ({"recipe": replace(RECIPE, batch_size=64)}, TrainingError, "40 training images make no"),
        (
            {"start_from": "timm:convnextv2_atto", "random_weights": True, "input_size": 32},
            TrainingError,
            "same depthwise layers",
        ),
    ],
)
def test_plans_that_cannot_be_followed(
    tmp_path: Path, images: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(plan(images, **changes), tmp_path / "out")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    def put(place: str) -> None:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "image.png")

    with pytest.raises(InputError, match=r"train is no folder.*--data"):
        open_folders(tmp_path)
    put("train/cat")
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match="Found 0 images"):
        open_folders(tmp_path)
    put("val/cat")
    with pytest.raises(InputError, match="has one class"):
        open_folders(tmp_path)
    put("train/dog")
    put("val/emu")
    with pytest.raises(InputError, match="classes that train/ has not: emu"):
        open_folders(tmp_path)
    put("train/emu")
    folders = open_folders(tmp_path)
    assert folders.classes == ["cat", "dog", "emu"]
    assert [folders.validation[index][1] for index in range(2)] == [0, 2]  # emu keeps its number


# Where training starts


def published_names(network: Any) -> dict[str, Any]:
    """The weights under the names of ConvNeXt V2's own code, without a head."""
    published = {}
    for name, value in network.state_dict().items():
        if name.startswith("head."):
            continue
        name = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        for timms, theirs in (
            ("stem.", "downsample_layers.0."),
            ("conv_dw", "dwconv"),
            ("mlp.grn.weight", "grn.gamma"),
            ("mlp.grn.bias", "grn.beta"),
            ("mlp.fc", "pwconv"),
        ):
            name = name.replace(timms, theirs)
        if "pwconv" in name and value.ndim == 4:
            value = value[:, :, 0, 0]  # linear layers there, 1x1 convolutions in timm's Atto
        published[name] = value.reshape(1, 1, 1, -1) if "grn" in name else value
    return published


def sparse_names(network: Any) -> dict[str, Any]:
    """The same in the masked autoencoder while it is trained: kernels column after column."""
    sparse: dict[str, Any] = {
        "mask_token": torch.zeros(1, 512, 1, 1),
        "proj.weight": torch.zeros(512, 320, 1, 1),
        "decoder.0.dwconv.weight": torch.zeros(512, 1, 7, 7),
        "decoder.0.grn.gamma": torch.zeros(1, 1, 1, 2048),
    }
    for name, value in published_names(network).items():
        stem = name.startswith("downsample_layers.0.")
        if name.endswith("dwconv.weight"):
            columns = [value[:, 0, y, x] for x in range(7) for y in range(7)]
            name, value = name.replace("weight", "kernel"), torch.stack(columns)
        elif name.startswith("downsample_layers") and name.endswith(".1.weight") and not stem:
            columns = [value[:, :, y, x].T for x in range(2) for y in range(2)]
            name, value = name.replace("weight", "kernel"), torch.stack(columns)
        elif re.search(r"(norm|downsample_layers\.[123]\.0)\.(weight|bias)$", name):
            name = re.sub(r"\.(weight|bias)$", r".ln.\1", name)
        elif "pwconv" in name:
            name = re.sub(r"\.(weight|bias)$", r".linear.\1", name)
        elif "grn" in name or name.endswith("bias"):
            value = value.reshape(1, -1)
        sparse[f"encoder.{name}"] = value
    return sparse


@pytest.mark.parametrize("form", ["timm", "published", "sparse"])
def test_a_checkpoint_without_a_head_gets_one_from_the_seed(
    tmp_path: Path, atto: Any, form: str
) -> None:
    if form == "timm":
        trunk = {name: value for name, value in atto.state_dict().items() if "head" not in name}
        path = tmp_path / "fcmae.safetensors"
        save_file(trunk, path)
    else:
        path = tmp_path / "fcmae.pt"
        names = published_names(atto) if form == "published" else sparse_names(atto)
        torch.save({"model": names}, path)
    origin = find_origin(f"checkpoint:{path}")
    assert origin.architecture == "convnextv2_atto"
    assert "cc-by-nc-4.0" in origin.license
    network, kept = build(origin, classes=5, drop_path=0.2, seed=3)
    assert not kept
    assert network.training
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found, expected = (one.eval().forward_features(images) for one in (network, atto))
    assert torch.equal(found, expected)
    weight = network.state_dict()["head.fc.weight"]
    assert weight.shape == (5, 320)
    assert float(weight.std()) == pytest.approx(2e-5, rel=0.2)
    assert not network.state_dict()["head.fc.bias"].any()
    again, other = (build(origin, classes=5, seed=seed)[0].state_dict() for seed in (3, 4))
    assert torch.equal(weight, again["head.fc.weight"])
    assert not torch.equal(weight, other["head.fc.weight"])


def test_timms_own_name_of_a_masked_autoencoder_gets_a_head() -> None:
    origin = find_origin("timm:convnextv2_atto.fcmae", random_weights=True)
    network, kept = build(origin, classes=5, drop_path=0.1)
    assert not kept
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 5)
    headless = replace(origin, weights=build(origin)[0].state_dict())
    assert "head.fc.weight" not in headless.weights
    network, kept = build(headless, classes=5)
    assert not kept
    assert float(network.state_dict()["head.fc.weight"].std()) == pytest.approx(2e-5, rel=0.2)


def test_a_classifier_is_kept_where_it_fits(tmp_path: Path, atto: Any) -> None:
    save_file(atto.state_dict(), tmp_path / "atto.safetensors")
    origin = find_origin(f"checkpoint:{tmp_path / 'atto.safetensors'}")
    network, kept = build(origin, classes=7, drop_path=0.1)
    assert kept
    assert all(torch.equal(v, atto.state_dict()[k]) for k, v in network.state_dict().items())
    rates = [float(m.drop_prob) for m in network.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx(np.linspace(0, 0.1, 12)[1:])  # the first block has none
    assert build(origin)[0].num_classes == 7
    assert not build(origin, classes=3)[1]


def test_the_demo_is_a_start_with_any_classes() -> None:
    network, kept = build(find_origin("demo"), classes=4, drop_path=0.1)
    assert not kept
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    own = load_file(DIRECTORY / "baseline.safetensors")
    assert all(
        torch.equal(value, own[name])
        for name, value in network.state_dict().items()
        if not name.startswith("head.fc")
    )


def test_weights_of_no_known_network_are_refused(tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "none.pt")
    with pytest.raises(SourceError, match=r"none.pt holds no depthwise filters"):
        find_origin(f"checkpoint:{tmp_path / 'none.pt'}")
    torch.save({"other.weight": torch.zeros(3, 1, 7, 7)}, tmp_path / "other.pt")
    with pytest.raises(SourceError, match="do not have the names and shapes of convnextv2_atto's"):
        find_origin(f"checkpoint:{tmp_path / 'other.pt'}", architecture="convnextv2_atto")
    with pytest.raises(InputError, match="is not there"):
        find_origin("checkpoint:nowhere.pt")


def test_another_network_starts_from_random_weights(tmp_path: Path, images: Path) -> None:
    """Any timm network with depthwise filters: here batch norm, strides and 3x3 and 5x5 filters."""
    chosen = plan(
        images,
        assigned_by=None,
        filters="learned",
        start_from="timm:mobilenetv3_small_050",
        random_weights=True,
        input_size=32,
    )
    summary = train(chosen, tmp_path)
    assert summary["architecture"] == "mobilenetv3_small_050"
    assert summary["classifier"] == "drawn from the seed"
    assert summary["licenses"] == {"start_from": "none: random weights", "assigned_by": None}


# The command


app = typer.Typer()
app.command()(command)


def test_the_command_prints_one_object(tmp_path: Path, images: Path) -> None:
    given = ["--start-from", "demo", "--assigned-by", "demo", "--data", str(images)]
    small = ["--preset", "small", "--epochs", "2", "--warmup-epochs", "1", "--batch-size", "8"]
    more = ["--workers", "0", "--device", "cpu", "--lr", "0.001", "--method", "C", "--json"]
    out = ["--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*given, *small, *more, *out])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["settings"]["method"] == "C"
    assert summary["settings"]["recipe"]["mixup"] == 0.8
    assert summary["peak_learning_rate"] == 0.001
    assert summary["effective_batch"] == 8
    assert "updates of 8 images" in result.stderr
    table = CliRunner().invoke(app, [*given, *small, *more[:-1], *out, "--resume"])
    assert table.exit_code == 0, table.output
    assert "Top-1 of all 20 validation images" in table.stdout
    assert "Apache-2.0" in table.stdout


def test_wrong_use_ends_before_anything_is_loaded(tmp_path: Path) -> None:
    given = ["--start-from", "demo", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, [*given, "--preset", "best"]).exit_code == 2
    assert CliRunner().invoke(app, [*given, "--epochs", "0"]).exit_code == 2
    for option in ("--method B", "--scales separate", "--boundary exact", "--keys keys.csv"):
        told = CliRunner().invoke(app, [*given, "--filters", "learned", *option.split()])
        assert told.exit_code == 2
        assert "shapes idealized filters" in told.stderr
    result = CliRunner().invoke(app, [*given, "--epochs", "9"])
    assert isinstance(result.exception, InputError)
    assert "--warmup-epochs" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("magnitude", [0, 5, 10])
@pytest.mark.parametrize("name", ["Posterize", "PosterizeIncreasing", "PosterizeOriginal"])
def test_posterizing_goes_down_to_no_bits(name: str, magnitude: int) -> None:
    """timm's augmentation as the loaders set it up, on the installed Pillow."""
    zoo.import_timm()
    from timm.data import auto_augment

    mend_posterizing()
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude)
    image = Image.new("RGB", (4, 4), (200, 100, 3))
    for _ in range(4):
        assert operation(image).size == (4, 4)
    assert posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert posterize(image, 1).getpixel((0, 0)) == (128, 0, 0)
    assert posterize(image, 8) is image
