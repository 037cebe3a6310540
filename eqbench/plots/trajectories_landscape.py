"""Weights and loss landscape over training: sharpness, curvature across symmetric weights, balance, weight symmetry (no torch)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from eqbench.leaderboard import Board
from eqbench.plots import over_training
from eqbench.plots.drawing import Titles
from eqbench.trajectories import Curve

GROUPS = 2
CAPTION = (
    "The loss landscape over training: largest Hessian eigenvalue λ₁, curvature κ₋ across the symmetric weights, balance Q of rescalings, and weight symmetry S_W, "
    f"κ₋ and S_W under at most {GROUPS} groups: {over_training.READ}. "
    "Dashed, for SGD alone: the λ₁ above which full-batch gradient descent with the step of that epoch diverges, 2/step without momentum; AdamW has another threshold."
)


def draw(board: Board, titles: Titles) -> Figure | None:
    """The figure, or None for a board without states between the untrained and the trained; `titles` gets what its marks are."""
    sharpness = [
        replace(strip, log=True, limits=_limits(board, strip.curves))
        for strip in over_training.strips(board, ["lambda_max"], most=1)
    ]
    others = (("transverse_curvature", GROUPS), ("balance_residual", 1), ("weight_symmetry", GROUPS))
    strips = [strip for name, most in others for strip in over_training.strips(board, [name], most)]
    return over_training.drawn(board, titles, [*sharpness, *strips])


def _limits(board: Board, curves: dict[str, Curve]) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for model, points in curves.items():
        recipe = board.facts[model]["recipe"]
        if recipe.get("opt") == "sgd":
            found[model] = threshold(recipe, [epoch for epoch, _ in points])
    return found


def threshold(recipe: dict[str, Any], epochs: Sequence[int]) -> list[tuple[int, float]]:
    """(Epoch, largest stable curvature) of SGD with Nesterov's momentum b and step h: 2 (1 + b) / (1 + 2b) h.

    The step is that of the cosine schedule with linear warm-up at the end of each epoch (Cohen et al. 2021, ICLR, app. B);
    epochs whose step is 0 have no threshold.

    >>> recipe = {"lr": 0.1, "min_lr": 0.0, "warmup_epochs": 0, "epochs": 4, "momentum": 0.0}
    >>> [(epoch, round(value, 6)) for epoch, value in threshold(recipe, [0, 2, 4])]
    [(0, 20.0), (2, 40.0)]
    """
    lr, least, warm = recipe["lr"], recipe.get("min_lr", 0.0), recipe.get("warmup_epochs", 0)
    momentum, last = recipe.get("momentum", 0.0), recipe["epochs"]
    found = []
    for epoch in epochs:
        share = (epoch - warm) / (last - warm) if last > warm else 0.0
        step = lr * epoch / warm if epoch < warm else least + (lr - least) * (1 + math.cos(math.pi * share)) / 2
        if step > 0:
            found.append((epoch, 2 * (1 + momentum) / (1 + 2 * momentum) / step))
    return found
