"""Training is seeded and resumable; idealized filters stay as they are (extra `train`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkf.errors import TrainingError
from mkf.fitting import fit_keys, idealized_kernels
from mkf.keys import load_keys

torch = pytest.importorskip("torch", reason="install the extra train: pip install 'mkf[train]'")

from mkf.demo.architecture import create_network  # noqa: E402  (these need torch)
from mkf.networks.torch_module import depthwise_convolutions  # noqa: E402
from mkf.training.frozen import freeze_idealized  # noqa: E402
from mkf.training.loop import Images, Recipe, predict, train  # noqa: E402

RECIPE = Recipe(
    epochs=3,
    batch_size=16,
    peak_learning_rate=2e-3,
    warmup_share=0.3,
    weight_decay=0.05,
    label_smoothing=0.1,
    drop_path_rate=0.1,
    max_gradient_norm=1.0,
    crop_padding=2,
    mean=0.3,
    std=0.35,
    seed=4,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> Images:
    """Bright left halves are class 0, bright right halves class 1... of 10."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=96).astype(np.uint8)
    pixels = rng.integers(60, size=(96, 32, 32)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[3 * label : 3 * label + 3] += 150
    return Images(pixels, labels)


def start() -> Any:
    torch.manual_seed(1)
    return create_network(drop_path_rate=RECIPE.drop_path_rate)


def weights(network: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start()
    top1 = train(whole, images, images, RECIPE, directory=tmp_path / "whole", title="whole")

    from mkf.training import loop

    class StopError(Exception):
        pass

    log = loop._log

    def stop_after_two(path: Path, **record: Any) -> None:
        log(path, **record)
        if record["epoch"] == 2:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_log", stop_after_two)
        with pytest.raises(StopError):
            train(start(), images, images, RECIPE, directory=tmp_path / "cut", title="cut")
    torch.manual_seed(99)  # whatever state the process is in
    resumed = create_network(drop_path_rate=RECIPE.drop_path_rate)
    assert top1 == train(resumed, images, images, RECIPE, directory=tmp_path / "cut", title="cut")

    for name, value in weights(whole).items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["training_loss"] < lines[0]["training_loss"]
    assert np.mean(predict(resumed, images, RECIPE) == images.labels) == top1


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, images: Images) -> None:
    short = replace(RECIPE, epochs=1)
    train(start(), images, images, short, directory=tmp_path, title="short")
    with pytest.raises(TrainingError, match="made by another recipe"):
        train(start(), images, images, RECIPE, directory=tmp_path, title="other")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, images: Images) -> None:
    with pytest.raises(TrainingError, match="lower the recipe's learning rate"):
        train(
            start(),
            images,
            images,
            replace(RECIPE, std=0.0),
            directory=tmp_path,
            title="wild",
        )


def test_idealized_filters_stay_while_the_rest_is_trained(tmp_path: Path, images: Images) -> None:
    def kernels(size: int) -> Any:
        return idealized_kernels(fit_keys(load_keys(), method="B"), size=size)

    trained, network = start(), start()
    with torch.no_grad():  # filters that are keys but for a factor, an offset and a little noise
        for _, layer in depthwise_convolutions(trained):
            chosen = torch.from_numpy(kernels(7))[torch.arange(len(layer.weight)) % 8]
            noise = torch.randn_like(layer.weight) * 1e-3
            layer.weight.copy_(-0.7 * chosen[:, None] + 0.2 + noise)
    assignments = freeze_idealized(network, trained=trained, kernels=kernels)
    assert len(assignments) == 6
    for assignment in assignments.values():
        np.testing.assert_array_equal(assignment.keys, np.arange(len(assignment.keys)) % 8 + 1)
        assert assignment.total_kept > 0.99
        assert (assignment.a < 0).all()

    before = weights(network)
    train(network, images, images, replace(RECIPE, epochs=1), directory=tmp_path, title="idealized")
    for name, value in weights(network).items():
        assert torch.equal(value, before[name]) is name.endswith("conv_dw.weight"), name


def test_another_architecture_cannot_lend_its_filters() -> None:
    with pytest.raises(TrainingError, match="same depthwise layers"):
        freeze_idealized(
            start(), trained=torch.nn.Conv2d(3, 3, 7, groups=3), kernels=lambda size: size
        )
