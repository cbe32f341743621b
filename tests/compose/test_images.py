"""The images: how large, what is in them, what they say of themselves."""

from __future__ import annotations

import re

from container_engine import ROOT, Engine, env_file

BUDGET = re.compile(r"^\| mkf-([\w-]+) \| \d+ \| (\d+) \|", re.MULTILINE)
TITLES = {"services": "mkf services", "export": "mkf export", "triton-cpu": "mkf triton-cpu"}


def test_every_image_keeps_to_its_budget(engine: Engine, images: dict[str, str]) -> None:
    budgets = dict(BUDGET.findall((ROOT / "deploy" / "docker" / "README.md").read_text()))
    assert budgets.keys() == images.keys()
    base = engine.inspect("image", env_file()["PYTHON_IMAGE"])["Size"]
    sizes = {
        name: (engine.inspect("image", tag)["Size"] - base) / 1e6 for name, tag in images.items()
    }
    print("MB over the base:", {name: round(size) for name, size in sizes.items()})
    assert all(sizes[name] <= int(budget) for name, budget in budgets.items()), sizes


def test_no_image_runs_as_root_or_holds_torch_or_pip(
    engine: Engine, images: dict[str, str]
) -> None:
    for tag in images.values():
        user = engine.inspect("image", tag)["Config"]["User"]
        assert int(user.partition(":")[0]) > 0
        found = engine.podman(
            "run", "--rm", "--entrypoint", "find", tag, "/opt", "/usr/local", "-maxdepth", "6",
            "-name", "torch", "-o", "-name", "tests", "-o", "-name", "pip*", "-o",
            "-name", "ensurepip", "-o", "-name", "setuptools",
        )  # fmt: skip
        assert not found
    base = env_file()["PYTHON_IMAGE"]
    found = engine.podman("run", "--rm", "--entrypoint", "ls", base, "/usr/local/bin")
    assert "pip" in found.split()  # it was there to be taken away


def test_the_services_hold_no_runtime_of_models(engine: Engine, images: dict[str, str]) -> None:
    installed = engine.podman(
        "run", "--rm", "--entrypoint", "python3", images["services"], "-c",
        "from importlib.metadata import distributions as d; print(*(x.name for x in d()))",
    ).split()  # fmt: skip
    assert "mkf" in installed
    assert not {"torch", "timm", "onnx", "onnxruntime", "matplotlib", "pytest"} & set(installed)


def test_labels_say_what_an_image_is(engine: Engine, images: dict[str, str]) -> None:
    prefix = "org.opencontainers.image."
    for name, tag in images.items():
        labels = engine.inspect("image", tag)["Labels"]
        said = {key.removeprefix(prefix): value for key, value in labels.items()}
        assert said["title"] == TITLES[name]
        assert said["version"] == env_file()["STACK_VERSION"]
        assert (said["revision"], said["source"]) == ("tested", "here")
        assert "Apache-2.0" in said["licenses"]
        assert said["description"]
