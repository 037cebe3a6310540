"""What each torch function does to the channels of its arguments, for `dataflow.trace`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqbench.symmetries import dataflow as flow

if TYPE_CHECKING:
    from eqbench.symmetries.dataflow import Term, Tracer

IGNORED = {"shape", "size", "numel", "dim", "_assert", "stride", "requires_grad", "dtype", "device", "is_cuda", "ndim"}
SHAPES = [
    "view",
    "reshape",
    "permute",
    "transpose",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "getitem",
    "chunk",
    "split",
    "unbind",
    "contiguous",
    "clone",
    "to",
    "float",
    "double",
    "type",
    "type_as",
    "expand",
    "expand_as",
    "repeat",
    "roll",
    "flip",
    "movedim",
    "swapaxes",
    "narrow",
    "select",
    "index_select",
    "tensor_split",
    "T",
    "mT",
    "unfold",
    "pixel_shuffle",
    "pixel_unshuffle",
    "dropout",
    "dropout1d",
    "dropout2d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "detach",
    "rot90",
    "channel_shuffle",
    "repeat_interleave",
    "split_with_sizes",
    "reshape_as",
    "view_as",
    "data",
    "swapdims",
    "adjoint",
    "identity",
    "tile",
]
POOLS = [
    "avg_pool1d",
    "avg_pool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "max_pool1d",
    "max_pool2d",
    "adaptive_max_pool2d",
    "interpolate",
]
REDUCTIONS = ["mean", "amax", "sum"]
HOMOGENEOUS = ["relu", "leaky_relu", "rrelu", "prelu", "abs"]  # f(ax) = a f(x) for a > 0
ACTIVATIONS = [
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "relu6",
    "elu",
    "selu",
    "celu",
    "softplus",
    "mish",
    "exp",
    "logsigmoid",
    "clamp",
    "pow",
    "square",
    "sqrt",
    "softsign",
    "hardshrink",
    "clip",
    "log",
]


def name_of(func: Any) -> str:
    """`add` for torch.add, Tensor.__iadd__, Tensor.add_ and so on; a property by its own name."""
    name = func.__name__
    if name == "__get__":
        return str(func.__self__.__name__)
    name = name.strip("_").removesuffix("_with_indices")
    return str({"iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "truediv": "div", "itruediv": "div",
                "multiply": "mul", "bmm": "matmul", "concat": "cat", "boolean_dispatch": "fn"}.get(name, name))  # fmt: skip


def leaves(tree: Any) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def bind(args: Any, kwargs: Any, *names: str) -> dict[str, Any]:
    """The arguments of a call by name."""
    return dict(zip(names, args, strict=False)) | kwargs


def shape(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Moves entries: it does the same to their codes."""
    if name_of(func) == "view":
        func = torch.Tensor.reshape
    moved = [
        (func(term.codes, *args[1:], **kwargs), term.flags)
        for term in tracer.terms(args[0] if args else kwargs["input"])
    ]
    outputs = [y] if isinstance(y, Tensor) else list(y)
    for i, output in enumerate(outputs):
        tracer.give(
            output, [flow.Term(c.double() if isinstance(y, Tensor) else c[i].double(), flags) for c, flags in moved]
        )
    return True


def pad(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Padding with zeros moves entries; with another constant, it is opaque."""
    given = bind(args, kwargs, "input", "pad", "mode", "value")
    return not given.get("value") and shape(tracer, func, args, kwargs, y)


def cat(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Concatenated tensors have concatenated codes, term by term."""
    tensors = args[0] if args else kwargs["tensors"]
    terms = [tracer.terms(tensor) for tensor in tensors]
    if len({term.flags for own in terms for term in own}) > 1:
        return cat_each(tracer, func, args, kwargs, y, terms)
    joined = []
    for i in range(max(map(len, terms))):
        rows = [own[i].codes if i < len(own) else torch.zeros_like(own[0].codes) for own in terms]
        joined.append(
            flow.Term(func(rows, *args[1:], **{k: v for k, v in kwargs.items() if k != "tensors"}), terms[0][0].flags)
        )
    tracer.give(y, joined)
    return True


def cat_each(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any, terms: list[list["Term"]]) -> bool:
    """Parts with different flags stay terms of their own, zero elsewhere."""
    joined = []
    for j, own in enumerate(terms):
        for term in own:
            rows = [term.codes if i == j else torch.zeros_like(other[0].codes) for i, other in enumerate(terms)]
            joined.append(
                flow.Term(func(rows, *args[1:], **{k: v for k, v in kwargs.items() if k != "tensors"}), term.flags)
            )
    tracer.give(y, joined)
    return True


def pool(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Mixes positions, keeps channels."""
    x = args[0] if args else kwargs["input"]
    output = y if isinstance(y, Tensor) else y[0]
    dims = [x.ndim - 1] if "1d" in name_of(func) else [x.ndim - 2, x.ndim - 1]
    return reduced(tracer, x, dims, output, lambda codes: codes.expand(output.shape))


def reduction(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Mean, sum or maximum over axes: mixes positions, if the channels are others."""
    given = bind(args, kwargs, "input", "dim", "keepdim")
    dims = given.get("dim", given.get("axis"))
    if dims is None:
        return False
    x = given["input"]
    dims = [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)]
    return reduced(tracer, x, dims, y, lambda codes: codes.reshape(y.shape))


def reduced(tracer: "Tracer", x: Tensor, dims: list[int], y: Tensor, form: Any) -> bool:
    """Give y the terms of x, of which `form` shapes the codes without what is mixed along dims."""
    terms = []
    for term in tracer.terms(x):
        found = flow.distinct(term.codes, dims)
        if found is None:
            return False
        terms += [flow.Term(form(codes), term.flags) for codes in found]
    tracer.give(y, terms)
    return True


def homogeneous(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Bends values at zero alone: f(ax) = a f(x) for a > 0."""
    tracer.give(y, [term.flagged("relu") for term in tracer.terms(args[0] if args else kwargs["input"])])
    return True


def activation(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Bends values of each channel by itself."""
    tracer.give(y, [term.flagged("bent") for term in tracer.terms(args[0] if args else kwargs["input"])])
    return True


def add(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """A sum has the terms of both sides; a number is a constant term."""
    sides = [*args, *kwargs.values()][:2]
    terms: list[Term] = []
    for side in sides:
        if isinstance(side, Tensor):
            terms += [flow.Term(term.codes.expand(y.shape), term.flags) for term in tracer.terms(side)]
        elif side:
            terms.append(tracer.write(tracer.node("opaque", "constant", 1), y, None))
    tracer.give(y, terms)
    return True


RULES: dict[str, Any] = {
    **dict.fromkeys(SHAPES, shape),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(HOMOGENEOUS, homogeneous),
    **dict.fromkeys(ACTIVATIONS, activation),
    "cat": cat,
    "stack": cat,
    "pad": pad,
    "add": add,
    "sub": add,
}
