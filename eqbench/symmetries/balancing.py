"""Gauge balancing: of all weights that rescalings and changes of basis inside heads make of a network, the smallest."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eqbench.curvature.objective import Objective
from eqbench.symmetries import attention, dataflow, rescalings
from eqbench.symmetries.attention import Pair
from eqbench.symmetries.rescalings import Layer, Rescaling
from eqbench.symmetries.transformations import Weights, beside, confirm

ROUNDS, STEPS = 200, 50  # at most: of heads after channels, of Newton's method within one
PRECISION = 1e-12  # relative change of the weights by a round, at which it is done


@torch.no_grad()
def balance(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the same function whose weights are the smallest on their orbit under S4, S6, S7, S8 and S13.

    theta* = argmin over T of |T theta|^2. At the minimum every charge is zero: |in_c|^2 = |out_c|^2 for every channel that
    can be rescaled, LL' = RR' for every pair of attention; it is unique up to rotations inside heads (Kempf & Ness 1979),
    which the singular value decomposition L'R = USV', L = sqrt(S)U', R = sqrt(S)V' settles. So copies of a network that
    differ by these transformations balance to the same weights.

    Args:
        module: any network. x: images (at least 2) on which its data flow is traced and the transformations are confirmed.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    >>> x = torch.rand(2, 3, 1, 1).double()
    >>> even = balance(net, x)
    >>> incoming = even[0].weight.flatten(1).square().sum(1) + even[0].bias ** 2
    >>> bool(torch.allclose(incoming, even[3].weight.square().sum(0))), bool((even(x) - net(x)).abs().max() < 1e-12)
    (True, True)
    """
    channels, heads = confirmed(module, x)
    new = copy.deepcopy(module)
    theta = {name: p.detach().double().cpu() for name, p in new.named_parameters()}
    for _ in range(ROUNDS):
        before = dict(theta)
        theta |= _balance_channels(theta, channels)
        for pair in heads:
            theta |= balance_heads(pair, theta)
        moved = sum(float((theta[name] - before[name]).square().sum()) for name in theta) ** 0.5
        if not heads or moved <= PRECISION * sum(float(w.square().sum()) for w in theta.values()) ** 0.5:
            break
    for name, p in new.named_parameters():
        p.copy_(theta[name])
    return new


def confirmed(module: nn.Module, x: Tensor) -> tuple[list[Rescaling], list[Pair]]:
    """The rescalings S4, S8, S13 and the pairs of heads S6, S7 that leave this network's logits alone."""
    flow = dataflow.trace(copy.deepcopy(module), x[:2])
    labels = torch.zeros(len(x[:2]), dtype=torch.long, device=x.device)
    exact = beside(Objective(module, [(x[:2], labels)]))
    source = torch.Generator().manual_seed(0)
    channels = [rescalings.random(one, source) for one in rescalings.find(flow) if one.family != "C0"]
    heads = [one.random(source) for one in attention.pairs(flow)]
    found = [one.origin for one in confirm(exact, [*channels, *heads]).confirmed]
    return [one for one in found if isinstance(one, Rescaling)], [one for one in found if isinstance(one, Pair)]


def imbalance(theta: Weights, instance: Rescaling | Pair) -> Tensor:
    """|in - out| / (in + out) of the charges of each channel, or each head: 0 once balanced, at most 1.

    The charge in - out is conserved by gradient flow, and one step of gradient descent changes it by eta^2 g'A g alone:
    |in_c|^2 - |out_c|^2 for a channel that can be rescaled, LL' - RR' (Frobenius norms) for a pair of attention.

    Args:
        theta: the parameters by name, in float64 on the CPU.
    """
    if isinstance(instance, Pair):
        grams = [side @ side.mT for side in (instance.left.get(theta), instance.right.get(theta))]
        return (grams[0] - grams[1]).norm(dim=(1, 2)) / sum(gram.norm(dim=(1, 2)) for gram in grams).clamp(min=1e-300)
    written, read = charges(_blocks(theta, instance.layers), torch.zeros(instance.size, dtype=torch.float64))
    own = instance.classes
    return (written[own] - read[own]).abs() / (written[own] + read[own]).clamp(min=1e-300)


@dataclass(eq=False)
class _Block:
    """Squares of weights (groups, out, in), and the classes of their rows (groups, out) and columns (groups, in)."""

    squares: Tensor
    rows: Tensor
    columns: Tensor

    def scaled(self, a: Tensor) -> Tensor:
        return self.squares * torch.exp(2 * (a[self.rows][:, :, None] - a[self.columns][:, None, :]))


def _blocks(theta: Weights, layers: Sequence[Layer]) -> list[_Block]:
    blocks = []
    for layer in layers:
        node, rows = layer.node, layer.writes
        assert node.weight is not None
        squares, zero = theta[node.weight].square(), torch.zeros(1, 1, dtype=torch.long)
        if node.kind == "linear":
            reads = zero.expand(node.groups, squares.shape[1]) if layer.reads is None else layer.reads
            squares = squares.flatten(2).sum(2) if squares.ndim > 2 else squares
            blocks.append(_Block(squares.view(len(reads), -1, squares.shape[1]), rows.view(len(reads), -1), reads))
        elif node.kind == "scale":
            reads = torch.zeros_like(rows) if layer.reads is None else layer.reads
            blocks.append(_Block(squares.view(-1, 1, 1), rows[:, None], reads[:, None]))
        else:
            sums = squares.movedim(node.axis, 0).flatten(1).sum(1) if node.kind == "parameter" else squares
            blocks.append(_Block(sums.view(1, -1, 1), rows[None], zero))
        if node.bias is not None and bool(rows.any()):
            blocks.append(_Block(theta[node.bias].square().view(1, -1, 1), rows[None], zero))
    return blocks


def charges(blocks: Sequence[_Block], a: Tensor) -> tuple[Tensor, Tensor]:
    """What is written to, and what is read from, each class: sums of squares (classes,)."""
    written, read = torch.zeros_like(a), torch.zeros_like(a)
    for block in blocks:
        e = block.scaled(a)
        written.index_add_(0, block.rows.flatten(), e.sum(2).flatten())
        read.index_add_(0, block.columns.flatten(), e.sum(1).flatten())
    return written, read


def _balance_channels(theta: Weights, channels: Sequence[Rescaling]) -> Weights:
    """The minimum over a of sum_ij w_ij^2 exp(2(a_i - a_j)), convex, by Newton's method with conjugate gradients."""
    if not channels:
        return {}
    layers = list({layer: None for one in channels for layer in one.layers})
    blocks, members = _blocks(theta, layers), torch.cat([one.classes for one in channels])
    a = torch.zeros(channels[0].size, dtype=torch.float64)
    written, read = charges(blocks, a)
    free = torch.zeros_like(a)
    free[members] = ((written[members] > 0) & (read[members] > 0)).double()  # where one is zero, there is no minimum
    # Each class alone has its minimum in closed form; Newton's method settles what they do to each other.
    for _ in range(STEPS):
        written, read = charges(blocks, a)
        gradient = 2 * (written - read) * free
        step = _solve(blocks, a, -gradient, (4 * (written + read)).clamp(min=1e-300), free)
        longest = float(step.abs().max())
        a = a + step * min(1.0, 1.0 / max(longest, 1e-300))
        if longest < PRECISION / 10:
            break
    moved: Weights = {}
    one = torch.ones((), dtype=torch.float64)
    for instance in channels:
        moved |= instance.curve(a[instance.classes]).curve(theta | moved, one)
    return moved


def _solve(blocks: Sequence[_Block], a: Tensor, target: Tensor, diagonal: Tensor, free: Tensor) -> Tensor:
    """Conjugate gradients on the Hessian of the sum of squares, preconditioned by its diagonal."""
    scaled = [block.scaled(a) for block in blocks]

    def product(p: Tensor) -> Tensor:
        total = torch.zeros_like(p)
        for block, e in zip(blocks, scaled, strict=True):
            rows, columns = p[block.rows], p[block.columns]
            total.index_add_(0, block.rows.flatten(), (rows * e.sum(2) - (e @ columns[:, :, None])[..., 0]).flatten())
            total.index_add_(0, block.columns.flatten(), (columns * e.sum(1) - (rows[:, None] @ e)[:, 0]).flatten())
        return 4 * total * free

    x, r = torch.zeros_like(target), target
    z = r / diagonal
    p, size = z, float(r @ z)
    start = size
    for _ in range(len(target)):
        if size <= 1e-24 * start or size == 0:
            break
        hp = product(p)
        rate = size / float(p @ hp)
        x, r = x + rate * p, r - rate * hp
        z = r / diagonal
        size, before = float(r @ z), size
        p = z + size / before * p
    return x


def balance_heads(pair: Pair, theta: Weights) -> Weights:
    """L = sqrt(S)U', R = sqrt(S)V' with L'R = USV', a head; the largest entry of each row of L is positive."""
    left, right = pair.left.get(theta), pair.right.get(theta)
    (ql, rl), (qr, rr) = (torch.linalg.qr(side.mT) for side in (left, right))
    u, s, vh = torch.linalg.svd(rl @ rr.mT, full_matrices=False)
    root = s.sqrt()[..., None]
    new = [root * (ql @ u).mT, root * (qr @ vh.mT).mT]
    sign = new[0].gather(-1, new[0].abs().argmax(-1, keepdim=True)).sign()
    moved = pair.left.put(theta, _padded(sign * new[0], left.shape))
    return moved | pair.right.put(theta | moved, _padded(sign * new[1], right.shape))


def _padded(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows of zeros below, where L'R has fewer singular values than rows."""
    return torch.cat([rows, rows.new_zeros(shape[0], shape[1] - rows.shape[1], shape[2])], 1)
