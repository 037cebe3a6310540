"""Forward derivatives of the layers for which torch's own rules cost several passes over every direction."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def gelu(x: Tensor, dx: Tensor, approximate: str = "none") -> tuple[Tensor, Tensor]:
    """J dx = g'(x) dx: torch computes g' anew for every direction."""
    slope = torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)
    return F.gelu(x, approximate=approximate), dx * slope


def layer_norm(
    x: Tensor,
    dx: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """J dx = w P dx / sd, P = I - 1 1'/C - x^ x^'/C: P is symmetric, so that the fused backward pass applies it."""
    y, mean, inverse = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
    dy = torch.ops.aten.native_layer_norm_backward(
        dx, x, normalized_shape, mean, inverse, None, None, [True, False, False]
    )[0]
    return y, dy if weight is None else dy * weight


def batch_norm(
    x: Tensor,
    dx: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor] | None:
    """J dx = w dx / sqrt(v + eps), in evaluation mode."""
    if training or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return y, dx * scale.view(-1, *[1] * (x.dim() - 2))


def conv2d(
    x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    """J dx = w * dx: torch adds x * dw, of zeros."""
    return F.conv2d(x, weight, bias, *how, **named), F.conv2d(dx, weight, None, *how, **named)


def linear(x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """J dx = W dx: torch adds dW x, of zeros."""
    return F.linear(x, weight, bias), F.linear(dx, weight)


RULES: dict[Any, Callable[..., tuple[Tensor, Tensor] | None]] = {
    F.gelu: gelu,
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.conv2d: conv2d,
    F.linear: linear,
}


class Rules(TorchFunctionMode):
    """Inside, forward mode takes these rules; torch's own for other operations, and where weights are differentiated too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule, kwargs = RULES.get(func), kwargs or {}
        if rule is not None and args and not any(map(_moves, (*args[1:], *kwargs.values()))):
            x, dx = forward_ad.unpack_dual(args[0])
            found = rule(x, dx, *args[1:], **kwargs) if dx is not None else None
            if found is not None:
                return forward_ad.make_dual(*found)
        return func(*args, **kwargs)


def _moves(value: Any) -> bool:
    """Whether an argument is differentiated: weights may be made of the images."""
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None
