"""What products do to the channels of their factors, for `dataflow.trace`: layers, norms, gates, attention."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqbench.symmetries import dataflow as flow
from eqbench.symmetries.operations import bind, name_of, reduced

if TYPE_CHECKING:
    from eqbench.symmetries.dataflow import Tracer


def mul(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """A factor a channel is a layer; any other factor that is not one number leaves a flag on what it multiplies."""
    a, b = [*args, *kwargs.values()][:2]
    if name_of(func) != "div" and not isinstance(a, Tensor):
        a, b = b, a
    if not isinstance(b, Tensor) or b.numel() == 1:
        one = not isinstance(b, Tensor) or not (id(b) in tracer.parameters or id(b) in tracer.values)
        tracer.give(y, [term if one else term.flagged("times") for term in tracer.terms(a)])
        return True
    if name_of(func) != "div" and _factor(tracer, a):
        a, b = b, a
    if name_of(func) != "div" and _factor(tracer, b):
        return _scale(tracer, a, b, y)
    if _rank(tracer, a, y) < _rank(tracer, b, y) and name_of(func) != "div":
        a, b = b, a
    if _rank(tracer, a, y) == 0:
        return False
    if id(b) in tracer.values:
        tracer.opaque("factor", [b], None)
    tracer.give(y, [term.flagged("times") for term in tracer.terms(a)])
    return True


def _factor(tracer: "Tracer", b: Tensor) -> bool:
    """Whether b is a parameter, or a view of one."""
    if id(b) not in tracer.values and id(b) not in tracer.parameters:
        return False
    terms = tracer.terms(b)
    if len(terms) != 1 or terms[0].flags or not bool(terms[0].codes.any()):
        return False
    top = int(terms[0].codes.max())
    return any(n.kind == "parameter" and n.start <= top < n.start + n.channels for n in tracer.nodes)


def _rank(tracer: "Tracer", x: Tensor, y: Tensor) -> int:
    """How well x serves as the side whose channels go on: 0 not at all."""
    if x.shape != y.shape or id(x) not in tracer.values:
        return 0
    return 1 if any("bent" in term.flags for term in tracer.terms(x)) else 2


def _scale(tracer: "Tracer", x: Tensor, factor: Tensor, y: Tensor) -> bool:
    """LayerScale: reads x, writes one channel an entry of the factor; the parameter's own node becomes the layer."""
    codes = tracer.terms(factor)[0].codes.expand(y.shape)
    axes = [d for d in range(y.ndim) if codes.shape[d] > 1 and codes.stride(d)]
    if len(axes) != 1:
        return False
    (node,) = [n for n in tracer.nodes if n.start == int(codes.min()) and n.kind == "parameter"]
    if node.channels != codes.shape[axes[0]]:
        return False
    weight, node.weight = node.weight, None
    return weight is not None and tracer.layer(x, axes[0], y, "scale", node.name, node.channels, weight=weight)


def linear(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """A linear layer whose weight is a parameter."""
    given = bind(args, kwargs, "input", "weight", "bias")
    weight, bias = tracer.name(given["weight"]), given.get("bias")
    if weight is None or id(given["weight"]) not in tracer.parameters:
        return False
    facts: dict[str, Any] = {"weight": weight, "bias": tracer.name(bias) if id(bias) in tracer.parameters else None}
    if bias is not None and facts["bias"] is None:
        (term,) = tracer.terms(bias)
        facts["bias_codes"] = term.codes.reshape(-1).long()
    return tracer.layer(given["input"], -1, y, "linear", weight.rpartition(".")[0], y.shape[-1], **facts)


def conv2d(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """A convolution whose weight is a parameter."""
    given = bind(args, kwargs, "input", "weight", "bias", "stride", "padding", "dilation", "groups")
    weight, padding = tracer.name(given["weight"]), given.get("padding", 0)
    if weight is None or id(given["weight"]) not in tracer.parameters or given["input"].ndim < 3:
        return False
    padded = padding not in ("valid", 0, (0,), (0, 0)) and padding != [0, 0]
    facts = {
        "weight": weight,
        "bias": tracer.name(given.get("bias")),
        "groups": given.get("groups", 1),
        "padded": padded,
    }
    return tracer.layer(given["input"], 1, y, "linear", weight.rpartition(".")[0], y.shape[1], **facts)


def _norm(kind: str, axis: int, *names: str) -> Any:
    def rule(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
        given = bind(args, kwargs, *names)
        if len(given.get("normalized_shape", [1])) != 1:
            return False
        weight, bias = tracer.name(given.get("weight")), tracer.name(given.get("bias"))
        named = weight or tracer.name(given.get("running_mean")) or "norm"
        statistics = (tracer.name(given.get("running_mean")), tracer.name(given.get("running_var")))
        return tracer.layer(
            given["input"], axis, y, kind, named.rpartition(".")[0] or named, y.shape[axis], weight=weight, bias=bias,
            statistics=statistics if all(statistics) else None, eps=float(given.get("eps") or 0.0),
        )  # fmt: skip

    return rule


def attention(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Fused attention: queries meet keys, and values are averaged."""
    given = bind(args, kwargs, "query", "key", "value")
    product(tracer, given["query"], given["key"])
    tracer.opaque("attention", [given["query"], given["key"]], None)
    return _average(tracer, given["value"], given["value"].ndim - 2, y)


def _average(tracer: "Tracer", v: Tensor, tokens: int, y: Tensor) -> bool:
    """Y mixes the tokens of v and keeps its channels, head by head."""
    for term in tracer.terms(v)[:1]:
        found = flow.distinct(term.codes, [tokens])
        if found is not None and len(found) == 1:
            width = v.shape[-2 if tokens == v.ndim - 1 else -1]
            rows = found[0].reshape(-1, width).long().tolist()
            tracer.averaged.append(torch.tensor(list(dict.fromkeys(map(tuple, rows)))))
    return reduced(tracer, v, [tokens], y, lambda codes: codes.expand(y.shape)) and _flag(tracer, y, "attention")


def _flag(tracer: "Tracer", y: Tensor, flag: str) -> bool:
    tracer.give(y, [term.flagged(flag) for term in tracer.terms(y)])
    return True


def product(tracer: "Tracer", q: Tensor, k: Tensor) -> bool:
    """Note queries and keys (..., tokens, d) that are multiplied over d, if each comes from one layer."""
    sides = []
    for x in (q, k):
        term = tracer.terms(x)[0]
        found = flow.distinct(term.codes, [x.ndim - 2])
        if found is None or len(found) != 1 or x.shape[-1] < 2 or bool((found[0][..., :1] == found[0][..., 1:2]).any()):
            return False
        sides.append(found[0].reshape(-1, x.shape[-1]).long())
    heads = torch.cat(torch.broadcast_tensors(*sides) if len(sides[0]) != len(sides[1]) else sides, 1)
    unique = torch.stack([torch.tensor(row) for row in dict.fromkeys(map(tuple, heads.tolist()))])
    flags = frozenset().union(*(term.flags for x in (q, k) for term in tracer.terms(x)))
    flags |= {"sum"} if max(len(tracer.terms(x)) for x in (q, k)) > 1 else set()
    left, right = unique.split(q.shape[-1], 1)
    tracer.attentions.append(flow.Attention(left, right, flags))
    return True


def matmul(tracer: "Tracer", func: Any, args: Any, kwargs: Any, y: Any) -> bool:
    """Scores QK' are noted; in AV, and V'A', the channels of the values go on."""
    a, b = [*args, *kwargs.values()][:2]
    if a.ndim < 3 or b.ndim < 3:
        return False
    if product(tracer, a, b.mT if id(b) not in tracer.values else _transposed(tracer, b)):
        return False
    known = [id(x) in tracer.values and _mixes_tokens(tracer, x, d) for x, d in ((a, -1), (b, -2))]
    if known[0] == known[1]:
        return False
    v, other, d = (a, b, a.ndim - 1) if known[0] else (b, a, b.ndim - 2)
    tracer.opaque("attention", [other], None)
    return _average(tracer, v, d, y)


def _transposed(tracer: "Tracer", x: Tensor) -> Tensor:
    y = x.mT
    tracer.give(y, [flow.Term(term.codes.mT, term.flags) for term in tracer.terms(x)])
    return y


def _mixes_tokens(tracer: "Tracer", x: Tensor, d: int) -> bool:
    """Whether entries along axis d are of the same channel, and others are not."""
    for term in tracer.terms(x):
        found = flow.distinct(term.codes, [x.ndim + d])
        if found is None or len(found) != 1 or len(flow.compact(found[0]).unique()) < 2:
            return False
    return True


RULES: dict[str, Any] = {
    "mul": mul,
    "div": mul,
    "linear": linear,
    "conv1d": conv2d,
    "conv2d": conv2d,
    "batch_norm": _norm(
        "batch_norm", 1, "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"
    ),
    "layer_norm": _norm("layer_norm", -1, "input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": _norm("rms_norm", -1, "input", "normalized_shape", "weight", "eps"),
    "group_norm": _norm("group_norm", 1, "input", "num_groups", "weight", "bias", "eps"),
    "scaled_dot_product_attention": attention,
    "matmul": matmul,
}
