"""An autoencoder of filters whose code is one number in [0, 1] (extra `train`).

As in [BKRG] (Babaiee, Kiasari, Rus, Grosu, arXiv 2509.11711): filters of zero mean and unit norm go
through a perceptron to one number and back, and codes spread evenly over [0, 1] are decoded to
candidates for keys. One number is a narrow gate to train through. What makes it robust here:

- Nothing depends on a filter's sign. The encoder's first layer is |W y|, and the loss is 1 minus
  the squared cosine of the decoded and the given filter: the error of a f + b that discovery is
  about. So no code is spent on signs, nor torn where a convention for them would turn over.
- The decoder's first layer starts with bends spread over all of [0, 1], steep enough for dozens of
  shapes side by side; with the usual start it would begin almost linear in the code.
- Several autoencoders train side by side, each from its own start, and the best by loss is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mkf.errors import TrainingError

_STEPS_A_CHECKPOINT = 100
_STEEPNESS = 20.0  # of the decoder's bends


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """How the autoencoders are trained."""

    seed: int = 0
    restarts: int = 4  # autoencoders side by side
    steps: int = 2000
    batch_size: int = 256
    hidden: int = 128
    peak_learning_rate: float = 2e-3  # Adam, one cycle


class LineAutoencoders(nn.Module):
    """`restarts` perceptrons d -> hidden -> hidden -> 1 -> hidden -> hidden -> d, side by side."""

    def __init__(self, values: int, recipe: AutoencoderRecipe, generator: torch.Generator) -> None:
        super().__init__()
        many, hidden = recipe.restarts, recipe.hidden

        def weight(inputs: int, outputs: int, gain: float = 1.0) -> nn.Parameter:
            drawn = torch.randn(many, inputs, outputs, generator=generator)
            return nn.Parameter(drawn * gain * (2 / inputs) ** 0.5)

        def bias(outputs: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(many, 1, outputs))

        self.even = weight(values, hidden, 2.0)
        self.encode_weight, self.encode_bias = weight(hidden, hidden), bias(hidden)
        self.code_weight, self.code_bias = weight(hidden, 1), bias(1)
        slopes = (torch.rand(many, 1, hidden, generator=generator) * 2 - 1) * _STEEPNESS
        bends = torch.rand(many, 1, hidden, generator=generator)
        self.bend_weight, self.bend_bias = nn.Parameter(slopes), nn.Parameter(-slopes * bends)
        self.decode_weight, self.decode_bias = weight(hidden, hidden), bias(hidden)
        self.shape_weight, self.shape_bias = weight(hidden, values), bias(values)

    def encode(self, lines: Tensor) -> Tensor:  # (restarts, n, d) -> (restarts, n, 1)
        """The codes, in 0..1, the same for a filter and its negative."""
        hidden = torch.bmm(lines, self.even).abs()
        hidden = torch.baddbmm(self.encode_bias, hidden, self.encode_weight).relu()
        codes: Tensor = torch.baddbmm(self.code_bias, hidden, self.code_weight).sigmoid()
        return codes

    def decode(self, codes: Tensor) -> Tensor:  # (restarts, n, 1) -> (restarts, n, d)
        """The filters of codes, of zero mean and unit norm."""
        hidden = (codes * self.bend_weight + self.bend_bias).relu()
        hidden = torch.baddbmm(self.decode_bias, hidden, self.decode_weight).relu()
        shapes = torch.baddbmm(self.shape_bias, hidden, self.shape_weight)
        shapes = shapes - shapes.mean(-1, keepdim=True)
        filters: Tensor = shapes / shapes.norm(dim=-1, keepdim=True).clamp_min(1e-8)
        return filters

    def loss(self, lines: Tensor) -> Tensor:  # (restarts, n, d) -> (restarts,)
        """Share of the filters' variance that a f + b of the decoded filter loses, mean over n."""
        cosines = (self.decode(self.encode(lines)) * lines).sum(-1)
        return (1 - cosines**2).mean(1)


def candidates(
    lines: NDArray[np.float64],
    count: int,
    recipe: AutoencoderRecipe,
    *,
    checkpoint: Path,
    advance: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Train on filters and decode evenly spread codes.

    Parameters
    ----------
    lines : (n, d) float64
        The filters, of zero mean and unit norm.
    count : int
        How many codes.
    checkpoint : Path
        File of the training's state, replaced every 100 steps. A call that finds it goes on behind
        it, with the same result as an uninterrupted one.
    advance : callable
        Called with the steps done since the last call.

    Returns
    -------
    (count, d) float64
        The candidates of the autoencoder of least loss over all filters, by increasing code; of
        zero mean and unit norm.

    Raises
    ------
    TrainingError
        The loss is not finite, or the checkpoint is not one of this call's.
    """
    with _one_thread():
        return _candidates(lines, count, recipe, checkpoint, advance)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from more, and the result must not depend on the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _candidates(
    lines: NDArray[np.float64],
    count: int,
    recipe: AutoencoderRecipe,
    checkpoint: Path,
    advance: Callable[[int], None],
) -> NDArray[np.float64]:
    filters = torch.from_numpy(lines).float()
    generator = torch.Generator().manual_seed(recipe.seed)
    network = LineAutoencoders(lines.shape[1], recipe, generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.peak_learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    made_by = {**asdict(recipe), "filters": sha256(lines.tobytes()).hexdigest()}
    state = _State(checkpoint, made_by, network, optimizer, schedule)
    step = state.load()
    advance(step)
    while step < recipe.steps:
        # Seeded by the step, so that a resumed training draws the same batches.
        generator.manual_seed(recipe.seed * 1_000_003 + step)
        block = min(_STEPS_A_CHECKPOINT, recipe.steps - step)
        for _ in range(block):
            drawn = torch.randint(
                len(filters), (recipe.restarts, recipe.batch_size), generator=generator
            )
            losses = network.loss(filters[drawn])
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            schedule.step()
        if not torch.isfinite(losses).all():
            raise TrainingError(
                f"the autoencoder's loss is not finite after step {step}; take another seed"
            )
        step += block
        state.save(step)
        advance(block)

    many = recipe.restarts
    with torch.inference_mode():
        loss = torch.zeros(many)
        for part in filters.split(4096):
            loss += network.loss(part.expand(many, -1, -1)) * len(part) / len(filters)
        codes = torch.linspace(0, 1, count).reshape(1, count, 1).expand(many, -1, -1)
        decoded = network.decode(codes)[int(loss.argmin())].double().numpy()
    decoded = decoded - decoded.mean(axis=1, keepdims=True)
    return np.asarray(decoded / np.linalg.norm(decoded, axis=1, keepdims=True))


@dataclass
class _State:
    """The training's state on disk: tensors and numbers, replaced in one move."""

    path: Path
    made_by: dict[str, Any]  # the recipe, and a digest of the filters
    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def load(self) -> int:
        """Put the saved state back; the steps done."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["made_by"] != self.made_by:
            raise TrainingError(
                f"{self.path} was made by a call with other networks or options; "
                f"remove {self.path.parent} to start afresh"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return int(state["step"])

    def save(self, step: int) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save(
            {
                "made_by": self.made_by,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "step": step,
            },
            temporary,
        )
        temporary.replace(self.path)
