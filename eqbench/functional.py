"""Calls a network with other weights than its own."""

from collections import defaultdict
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call(module: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Any:
    """f(x) with these parameters and buffers in place of the network's own, which it has again afterwards.

    torch.func.functional_call leaves a module that is reached by two names with the caller's tensors
    (pytorch#164759): here each module is reached by one. A parameter of two modules is still one parameter.

    Args:
        tensors: by the names of `named_parameters` and `named_buffers`; what is not among them stays.

    >>> import torch
    >>> net = nn.Sequential(*[nn.Linear(2, 2, bias=False)] * 2)
    >>> call(net, {"0.weight": 3 * torch.eye(2)}, torch.ones(1, 2))
    tensor([[9., 9.]])
    >>> net[1].weight is net[0].weight and isinstance(net[1].weight, nn.Parameter)
    True
    """
    places: dict[int, list[str]] = defaultdict(list)
    own: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        for name, tensor in (*layer.named_parameters("", False, False), *layer.named_buffers("", False, False)):
            place = f"{path}.{name}".removeprefix(".")
            own[place] = tensor
            places[id(tensor)].append(place)
    tied = {place: tensors[name] for name in tensors for place in places[id(own[name])]}
    return functional_call(module, tied, (x,), tie_weights=False)
