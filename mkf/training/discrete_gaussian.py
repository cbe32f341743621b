"""The discrete Gaussian as a differentiable torch function of its variance (extra `train`).

T(n; s) = exp(-s) I_n(s), with I_n the modified Bessel functions of integer order (Lindeberg,
"Scale-space for discrete signals", IEEE PAMI 12(3), 1990, below [L90]). torch has I_0 and I_1 only;
the others follow by recurrence over the orders, downward where s is small and upward where it is
large. Upward alone would lose every digit at the small scales of learned filters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def discrete_gaussian(s: Tensor, reach: int) -> Tensor:
    """The discrete analogue of the Gaussian, T(0; s), ..., T(reach; s) [L90].

    Parameters
    ----------
    s : Tensor of float32 or float64, shape (...)
        Variances in square pixels, at least 0 (not looked at, which would stall a GPU); 0 gives the
        unit impulse. Pass sigma**2 for a function of sigma: it is smooth through sigma = 0.
    reach : int
        Greatest position, at least 1, in pixels. T(-n) = T(n).

    Returns
    -------
    Tensor, shape (..., reach + 1), dtype of `s`
        Differentiable in `s` any number of times, by dT/ds = (T(n-1) - 2 T(n) + T(n+1)) / 2.

    Examples
    --------
    >>> import torch
    >>> from mkf.training.discrete_gaussian import discrete_gaussian
    >>> discrete_gaussian(torch.tensor(0.25), 2)
    tensor([0.7910, 0.0981, 0.0061])
    """
    values: Tensor = _DiscreteGaussian.apply(s, reach)  # type: ignore[no-untyped-call]
    return values


class _DiscreteGaussian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, reach: int) -> Tensor:
        values = _values(s, reach + 1)  # one more, which the derivative needs
        ctx.save_for_backward(s, values)
        return values[..., :-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        s, values = ctx.saved_tensors
        if torch.is_grad_enabled():  # this will be differentiated in turn
            values = discrete_gaussian(s, values.shape[-1] - 1)
        before = torch.cat([values[..., 1:2], values[..., :-2]], dim=-1)  # T(-1) = T(1)
        slope = (before - 2 * values[..., :-1] + values[..., 1:]) / 2
        return (gradients[0] * slope).sum(-1), None


def _values(s: Tensor, reach: int) -> Tensor:
    """T(0; s), ..., T(reach; s), shape (..., reach + 1).

    Up to s = `limit`, the ratios r(n) = T(n) / T(n-1) by their continued fraction
    r(n) = s / (2 n + s r(n+1)), all of whose terms are positive, so that nothing cancels and s = 0
    needs no case of its own. What it is started from is forgotten by a factor r(n)^2 a step, about
    exp(-(m^2 - n^2) / s) from order m down to n.

    Beyond, T(n+1) = T(n-1) - (2 n / s) T(n), whose errors grow by about exp(n^2 / s).
    """
    limit = max(1.0, reach**2 / 4)  # upward, rounding errors grow e^4-fold at most
    small, large = s.clamp(max=limit), s.clamp(min=limit)
    forgotten = -math.log(torch.finfo(s.dtype).eps)
    ratio, ratios = torch.zeros_like(s), []
    for n in range(math.ceil(math.sqrt(reach**2 + forgotten * limit)), 0, -1):
        ratio = small / (2 * n + small * ratio)
        ratios.append(ratio)
    factors = [torch.special.i0e(small), *reversed(ratios[-reach:])]
    falling = torch.stack(factors, dim=-1).cumprod(-1)

    rising = [torch.special.i0e(large), torch.special.i1e(large)]
    for n in range(1, reach):
        rising.append(rising[-2] - (2 * n / large) * rising[-1])
    return torch.where((s <= limit)[..., None], falling, torch.stack(rising, dim=-1))
