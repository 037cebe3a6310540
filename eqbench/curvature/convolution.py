"""Convolution with a double backward of native kernels: torch's own goes group by group, and through slow general ones."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

Settings = tuple[Any, ...]  # stride, padding, dilation, groups


def _gradients(g: Tensor, x: Tensor, w: Tensor, settings: Settings, mask: list[bool]) -> Any:
    """Gradients of <g, conv(x, w) + b> for x, w and b, those of the mask."""
    stride, padding, dilation, groups = settings
    return torch.ops.aten.convolution_backward(
        g, x, w, [len(w)], stride, padding, dilation, False, [0, 0], groups, mask
    )


class _Convolution(torch.autograd.Function):
    """y = w * x + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.settings = settings
        return conv2d(x, w, b, *settings)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return (*_ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.settings, list(ctx.needs_input_grad[:3])), None)


class _ConvolutionBackward(torch.autograd.Function):
    """(dx, dw, db) from g: bilinear in g and (w, x), so that its own derivatives are convolutions again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, settings: Settings, mask: list[bool]) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return tuple(_gradients(g, x, w, settings, mask))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
        (g, x, w), settings = ctx.saved_tensors, ctx.settings
        dg = dx = dw = None
        if ctx.needs_input_grad[0]:
            parts = [conv2d(x, vw, vb, *settings)] if vw is not None else []
            parts += [conv2d(vx, w, None if parts else vb, *settings)] if vx is not None else []
            dg = sum(parts[1:], parts[0]) if parts else None if vb is None else vb[:, None, None].expand_as(g)
        if ctx.needs_input_grad[1] and vw is not None:
            dx = _gradients(g, x, vw, settings, [True, False, False])[0]
        if ctx.needs_input_grad[2] and vx is not None:
            dw = _gradients(g, vx, w, settings, [False, True, False])[1]
        return dg, dx, dw, None, None


class NativeConvolutions(TorchFunctionMode):
    """Inside, F.conv2d (and so nn.Conv2d) has the double backward of this file."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is conv2d:
            x, w, b, *settings = _arguments(*args, **kwargs)
            if x.ndim == 4 and not isinstance(settings[1], str) and not _wide(x, w, settings[3]):
                return _Convolution.apply(x, w, b, tuple(settings))
        return func(*args, **kwargs)


def _wide(x: Tensor, w: Tensor, groups: int) -> bool:
    """Whether torch's own loop over groups is the faster one: on a CPU, kernels above 3 x 3 over many positions."""
    return groups > 1 and w.shape[-1] > 3 and len(x) * x[0, 0].numel() > 1500 and not x.is_cuda


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    pair = [value if isinstance(value, str) else [value] * 2 if isinstance(value, int) else list(value)
            for value in (stride, padding, dilation)]  # fmt: skip
    return input, weight, bias, *pair, groups
