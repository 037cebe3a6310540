"""Curvature against PyHessian, hessian-eigenthings and curvlinops: products, memory, eigenpairs and traces in one run.

The peers get the same module, tensors and vectors; each is timed in its best eager mode. `python tests/bench_curvature.py`
prints the rows alone; without the `bench` extra installed, only curvlinops is compared with.
"""

import functools
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from eqbench.curvature.hessian import Hessian
from eqbench.curvature.lanczos import extreme_eigenpairs
from eqbench.curvature.objective import Objective, prepare
from eqbench.curvature.trace import krylov_trace

Row = tuple[str, float, str, str, str]
Product = Callable[[Tensor], Tensor]
ROUNDS, RMS, TOP, RESIDUAL = 5, 0.02, 10, 1e-3
PROBES = 4  # of the trace's products, those that tell its error


def ours(module: nn.Module, x: Tensor, y: Tensor) -> Product:
    return Hessian(Objective(module, [(x, y)])).__matmul__


def curvlinops(module: nn.Module, x: Tensor, y: Tensor) -> Product:
    from curvlinops import HessianLinearOperator

    parameters = [p for p in module.parameters() if p.requires_grad]
    operator = HessianLinearOperator(module, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)
    return operator.__matmul__


def pyhessian(module: nn.Module, x: Tensor, y: Tensor) -> Product:
    """Its single-batch mode, which keeps the gradient's graph."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    tool = hessian(module, nn.CrossEntropyLoss(), data=(x, y), cuda=False)

    def product(v: Tensor) -> Tensor:
        pieces = [
            piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in tool.params]), tool.params, strict=True)
        ]
        return torch.cat([part.reshape(-1) for part in hessian_vector_product(tool.gradsH, tool.params, pieces)])

    return product


def eigenthings(module: nn.Module, x: Tensor, y: Tensor) -> Product:
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    return HessianOperator(module, [(x, y)], supervised_loss(nn.CrossEntropyLoss())).matvec


PEERS = {"curvlinops": curvlinops, "PyHessian": pyhessian, "hessian-eigenthings": eigenthings}
TOOLS = {"eqbench": ours, **PEERS}


def installed() -> list[str]:
    """The peers that can be imported."""
    names = {"curvlinops": "curvlinops", "PyHessian": "pyhessian", "hessian-eigenthings": "hessian_eigenthings"}
    from importlib.util import find_spec

    return [name for name, package in names.items() if find_spec(package)]


def batch(images: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images, 3, size, size, generator=generator), torch.randint(1000, (images,), generator=generator)


def products(name: str, images: int, size: int) -> Iterator[Row]:
    """A product against a gradient and against the fastest peer's, in turns, so that what else runs slows all alike."""
    torch.manual_seed(0)
    module, (x, y) = prepare(timm.create_model(name)), batch(images, size)
    objective = Objective(module, [(x, y)])
    v = torch.randn(objective.size)
    v /= v.norm()
    with sdpa_kernel(SDPBackend.MATH):
        works: dict[str, Callable[[], Any]] = {"gradient": functools.partial(_gradient, module, x, y)}
        works |= {tool: functools.partial(TOOLS[tool](module, x, y), v) for tool in ["eqbench", *installed()]}
        found = {tool: work() for tool, work in works.items()}
        seconds: dict[str, list[float]] = {tool: [] for tool in works}
        for _ in range(ROUNDS):
            for tool, work in works.items():
                start = time.process_time()
                work()
                seconds[tool].append(time.process_time() - start)
    best = {tool: statistics.median(times) for tool, times in seconds.items()}
    fastest = min(installed(), key=best.__getitem__)
    what = f"hessian product, {name}, {images} images of {size} px"
    yield what, best["eqbench"] / best["gradient"], "gradients", "2.6", ""
    for tool in installed():
        target = "1.05" if tool == fastest else ""
        yield what, best["eqbench"] / best[tool], "of the peer's time", target, tool
        error = float((found[tool] - found["eqbench"]).norm() / found["eqbench"].norm())
        yield f"{what}: disagreement", error, "", "", tool


def _gradient(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))


def memory(name: str, images: int, size: int) -> Iterator[Row]:
    """Peak memory of two products beyond the network's, a process a tool."""
    peaks = {}
    for tool in ["eqbench", *installed()]:
        command = [sys.executable, __file__, "--memory", tool, name, str(images), str(size)]
        peaks[tool] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    least = min(installed(), key=peaks.__getitem__)
    what = f"peak memory of a product, {name}, {images} images of {size} px"
    yield what, peaks["eqbench"] / peaks[least], "of the peer's", "1", least


def peak(tool: str, name: str, images: str, size: str) -> float:
    """MB that two products add to this process."""
    module, (x, y) = prepare(timm.create_model(name)), batch(int(images), int(size))
    v = torch.randn(sum(p.numel() for p in module.parameters()))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    with sdpa_kernel(SDPBackend.MATH):
        product = TOOLS[tool](module, x, y)
        for _ in range(2):
            product(v)
    return (_status("VmHWM") - before) / 1e3


def _status(key: str) -> int:
    """A line of /proc/self/status, in kB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0])


def trained(module: nn.Module, steps: int = 150, images: int = 128) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that has learned scikit-learn's digits, as most that are measured have learned something."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8 - 1
    x, y = nn.functional.interpolate(x, (32, 32)), torch.tensor(digits.target)
    optimiser = torch.optim.AdamW(module.train().parameters(), 3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(len(x), (64,), generator=order)
        optimiser.zero_grad()
        cross_entropy(module(x[pick]), y[pick]).backward()
        optimiser.step()
    return prepare(module), x[:images], y[:images]


def eigenpairs(name: str, options: dict[str, Any]) -> Iterator[Row]:
    """Products and time until a float64 check passes all ten pairs; PyHessian at its cheapest tolerance that does."""
    torch.manual_seed(0)
    module, x, y = trained(timm.create_model(name, num_classes=10, **options))
    exact = Hessian(Objective(module, [(x, y)]).double())

    def passes(vectors: list[Tensor]) -> bool:
        images = [(exact @ q.double(), q.double()) for q in vectors]
        values = [float(hq @ q) for hq, q in images]
        worst = max(float((hq - value * q).norm()) / abs(value) for (hq, q), value in zip(images, values, strict=True))
        return worst <= RESIDUAL

    start = time.process_time()
    pairs = extreme_eigenpairs(Hessian(Objective(module, [(x, y)])), TOP, smallest=0, tolerance=0.9 * RESIDUAL)
    own = time.process_time() - start
    ok = passes(list(pairs.vectors.T))
    what = f"top {TOP} at a verified residual of {RESIDUAL:g}, {name} trained on digits"
    yield what, pairs.products if ok else math.inf, "products", "40", ""
    if "PyHessian" in installed():
        with sdpa_kernel(SDPBackend.MATH):
            theirs = _pyhessian_eigenpairs(module, x, y, passes)
        yield what, theirs / own, "x our time", ">= 5", "PyHessian"


def _pyhessian_eigenpairs(module: nn.Module, x: Tensor, y: Tensor, passes: Callable[[list[Tensor]], bool]) -> float:
    from pyhessian import hessian

    for tolerance in (1e-4, 1e-6, 1e-8):
        torch.manual_seed(0)
        start = time.process_time()
        tool = hessian(module, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
        _, vectors = tool.eigenvalues(maxIter=300, tol=tolerance, top_n=TOP)
        seconds = time.process_time() - start
        if passes([torch.cat([part.reshape(-1) for part in v]) for v in vectors]):
            return seconds
    return math.inf  # it never passes


class Counted:
    """A dense matrix as everyone's operator; it counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size, self.products = matrix, len(matrix), 0
        self.dtype, self.device, self.shape = matrix.dtype, matrix.device, matrix.shape

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1 if v.ndim == 1 else v.shape[1]
        return self.matrix @ v

    matvec = __matmul__


def traces() -> Iterator[Row]:
    """Products until the root mean square error over 20 seeds is 2 %, on the dense Hessian of a small trained network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                        nn.Flatten(), nn.Linear(32, 10))  # fmt: skip
    module, x, y = trained(net, 300)
    operator = Hessian(Objective(module, [(x, y)]).double())
    matrix = torch.stack([operator @ row for row in torch.eye(operator.size).double()])
    matrix = (matrix + matrix.T) / 2
    truth = float(matrix.trace())

    def krylov(count: int, seed: int) -> tuple[float, int]:
        counted = Counted(matrix)
        return krylov_trace(counted, count, PROBES, seed).value, counted.products

    tools: dict[str, Callable[[int, int], tuple[float, int]]] = {"eqbench": krylov, **_peers_traces(matrix)}
    needed = {tool: _needed(estimate, truth) for tool, estimate in tools.items()}
    best = min((tool for tool in needed if tool != "eqbench"), key=needed.__getitem__)
    what = f"trace to {RMS:.0%} rms over 20 seeds, trained CNN of {len(matrix)} parameters"
    for tool, count in needed.items():
        target = f"< {needed[best]:g}" if tool == "eqbench" else ""
        yield what, count, "products", target, "" if tool == "eqbench" else tool


def _needed(estimate: Callable[[int, int], tuple[float, int]], truth: float) -> float:
    for count in itertools.chain(range(12, 60, 3), range(60, 121, 6), (150, 200, 300, 500, 1000)):
        found = [estimate(count, seed) for seed in range(20)]
        if statistics.fmean((value / truth - 1) ** 2 for value, _ in found) ** 0.5 <= RMS:
            return statistics.fmean(products for _, products in found)
    return math.inf


def _peers_traces(matrix: Tensor) -> dict[str, Callable[[int, int], tuple[float, int]]]:
    import curvlinops as peer

    def seeded(function: Callable[..., Tensor], count: int, seed: int) -> tuple[float, int]:
        torch.manual_seed(seed)
        return float(function(matrix, count - count % 6)), count - count % 6

    tools = {f"curvlinops {name}": functools.partial(seeded, function) for name, function in
             {"Hutch++": peer.hutchpp_trace, "XTrace": peer.xtrace, "Hutchinson": peer.hutchinson_trace}.items()}  # fmt: skip
    if "hessian-eigenthings" in installed():
        from hessian_eigenthings.algorithms.trace import trace

        def eigenthings_trace(count: int, seed: int) -> tuple[float, int]:
            counted: Any = Counted(matrix)
            return trace(counted, num_matvecs=count, seed=seed).estimate, counted.products

        tools["hessian-eigenthings Hutch++"] = eigenthings_trace
    return tools  # PyHessian's is Hutchinson's, with a stop on the running mean


def rows() -> Iterator[Row]:
    """Every comparison."""
    yield from traces()
    for name, images, size in (("resnet18", 4, 128), ("vit_tiny_patch16_224", 4, 224), ("convnext_atto", 4, 128)):
        yield from products(name, images, size)
        yield from memory(name, images, size)
    for name, options in (("test_resnet", {}), ("test_vit", {"img_size": 32})):
        yield from eigenpairs(name, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(peak(*sys.argv[2:]))
    else:
        for row in rows():
            print(*row, sep=", ", flush=True)
