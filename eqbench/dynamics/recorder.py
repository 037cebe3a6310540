"""The recorder of a training: looks on at every n-th step, and leaves weights, gradients, buffers and draws as they are."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eqbench.curvature.objective import Loss, TrainingObjective
from eqbench.dynamics.conservation import Conservation, Step, doubles, norm
from eqbench.dynamics.edge import Edge
from eqbench.errors import Failed, Unsupported, out_of_memory
from eqbench.feeding import Images
from eqbench.probes.base import FP32_BACKENDS, ieee
from eqbench.schema import Train

WATCHED = 64  # images of the fixed batch
CONFIRMING = 4  # images on which symmetries are confirmed
STEPS = (
    *("update", "loss", "lr", "threshold", "lambda_max", "residual", "alignment", "curvature", "gradient"),
    *("length", "weights"),  # |Delta|, |theta|
)
BF16, TF32 = 2.0**-7, 2.0**-10  # between 1 and the next number


class Recorder:
    """One row every `every` updates: what the step's actual gradient and change obey, and the sharpness before it.

    The gradient is the one that the optimiser is given: in training mode, of the augmented batch, with label smoothing, the
    penalty and clipping. The sharpness is that of the cross-entropy on a fixed batch (`Edge`).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
        loss: Loss,
        every: int,
        amp: bool = False,
    ) -> None:
        """Find the network's symmetries at its initial weights: whoever goes on from a checkpoint builds it before.

        Args:
            x, y: the fixed batch, on the network's device, at least 2 images.
            loss: (logits, labels) -> the mean cross-entropy with the recipe's label smoothing.
            amp: whether the actual step is in bfloat16, on a GPU.
        """
        self.network, self.optimizer, self.every = network, optimizer, every
        self.unit = unit(next(network.parameters()), amp)
        self.edge, self.rows = Edge(x, y, loss), list[dict[str, Any]]()
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.enable_grad(), ieee():
            self.conservation = Conservation(TrainingObjective(network, [(x[:CONFIRMING], y[:CONFIRMING])], loss))
        found = [one.origin for some in self.conservation.families.values() for one in some]
        self.instances = [one for one in found if one is not None]

    @classmethod
    def of(cls, network: nn.Module, optimizer: torch.optim.Optimizer, images: Images, recipe: Train) -> "Recorder":
        """That of a recipe, whose fixed batch are `WATCHED` training images, the same ones for every seed."""
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:WATCHED]
        loss = partial(nn.functional.cross_entropy, label_smoothing=recipe.smoothing)
        return cls(network, optimizer, *images.batch(chosen), loss, recipe.dynamics, recipe.amp)

    @contextmanager
    def step(self, update: int, loss: float | Tensor) -> Iterator[None]:
        """Around the optimiser's step of an update, whose gradients are there: a row, if its turn has come.

        Args:
            loss: of this step's batch, as it was descended on.
        """
        if update % self.every:
            yield
            return
        row: dict[str, Any] = {"update": update, "loss": _finite(float(loss))} | self._optimiser()
        with torch.enable_grad(), ieee():
            try:
                row |= self.edge.measure(self.network, self.instances, update)
            except (Unsupported, Failed) as error:
                row["reason"] = str(error)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                row["reason"] = "out of memory beside the training"
        parameters = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        theta = {name: p.clone() for name, p in doubles(parameters).items()}
        gradient = doubles((name, torch.zeros_like(p) if p.grad is None else p.grad.clone()) for name, p in parameters)
        yield
        now = doubles(self.network.named_parameters())
        rate = {id(p): float(group["weight_decay"]) for group in self.optimizer.param_groups for p in group["params"]}
        decay = {
            name: rate.get(id(p), 0.0) * theta[name] for name, p in self.network.named_parameters() if name in theta
        }
        taken = Step(theta, gradient, {name: now[name] - w for name, w in theta.items()}, decay, row["lr"])
        row |= {"length": _finite(taken.change_norm), "weights": _finite(norm(theta))}
        row["families"] = {
            family: {key: _finite(value) for key, value in numbers.items()}
            for family, numbers in self.conservation.of(taken).items()
        }
        self.rows.append(row)

    def _optimiser(self) -> dict[str, float | None]:
        """The learning rate, and the sharpness beyond which a quadratic diverges: 2 / lr, more with momentum.

        Heavy ball: 2 (1 + b) / lr; Nesterov's: 2 (1 + b) / ((1 + 2b) lr) (Cohen et al. 2021, ICLR). It is none of AdamW's,
        whose steps are preconditioned.
        """
        group = self.optimizer.param_groups[0]
        lr, b = float(group["lr"]), self.momentum
        if b is None or lr <= 0:
            return {"lr": lr, "threshold": None}
        return {"lr": lr, "threshold": 2 * (1 + b) / lr / (1 + 2 * b if group["nesterov"] else 1)}

    @property
    def momentum(self) -> float | None:
        """Of gradient descent; None of an adaptive optimiser."""
        plain = isinstance(self.optimizer, torch.optim.SGD)
        return float(self.optimizer.param_groups[0]["momentum"]) if plain else None

    @property
    def log(self) -> dict[str, Any]:
        """What is written: what was recorded, an array a number over the steps, and what a reader must know of it."""
        dtype = next(self.network.parameters()).dtype
        instances = {family: len(some) for family, some in self.conservation.families.items()}
        return {
            "every": self.every,
            "momentum": self.momentum,
            "eps": torch.finfo(dtype).eps,
            "unit": self.unit,
            "images": len(self.edge.x),
            "parameters": sum(p.numel() for p in self.network.parameters() if p.requires_grad),
            "instances": instances,
            "reason": next((row["reason"] for row in self.rows if "reason" in row), None),
            "steps": {key: [row.get(key) for row in self.rows] for key in STEPS},
            "families": {
                family: {
                    key: [row["families"][family][key] for row in self.rows] for key in self.rows[0]["families"][family]
                }
                for family in self.rows[0]["families"]
            },
        }

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rows": self.rows, "start": self.edge.start}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.rows, start = state["rows"], state["start"]
        self.edge.start = None if start is None else start.to(self.edge.x.device)


def unit(weight: Tensor, amp: bool) -> float:
    """Between 1 and the next number in the products of a step: of bfloat16, TF32, or the weights' own format."""
    if weight.is_cuda and amp:
        return BF16
    precisions = {backend.fp32_precision for backend in FP32_BACKENDS}
    coarse = weight.is_cuda and weight.dtype == torch.float32 and "tf32" in precisions
    return TF32 if coarse else torch.finfo(weight.dtype).eps


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
