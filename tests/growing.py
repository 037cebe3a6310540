"""Boards in memory whose numbers over training are planted: a truth, images that all cells share, and seeds."""

import base64
from dataclasses import dataclass

import numpy as np

from eqbench import schema
from eqbench.cells import names
from eqbench.config import Cell, Plan
from eqbench.leaderboard import Board
from eqbench.results import Layer, Measure, Result
from eqbench.stats import STORED

RECIPE = {"data": "digits", "epochs": 15, "opt": "adamw", "lr": 4e-3, "augment": "none", "penalty": None, "save": None}
IMAGES = 256


@dataclass(frozen=True)
class Grid(Plan):
    """A plan whose models have no files under conf/."""

    def plain(self, kind, name):
        return {"timm": name, "source": "train", "licence": None, "image_size": None} if kind == "model" else {}


def measure(value, own, shared, n=IMAGES):
    """A measure with replicates: `own` and `shared` are standard errors over images, the latter alike in all cells."""
    drawn = value + shared * SHARED + own * np.random.default_rng(abs(hash((value, own))) % 2**32).normal(size=STORED)
    half = 1.96 * np.hypot(own, shared)
    text = base64.b64encode(drawn.astype("<f4").tobytes()).decode()
    return Measure(value, value - half, value + half, n, units=n, replicates=text)


SHARED = np.random.default_rng(0).normal(size=STORED)


def grow(models, value, *, seeds=2, states=("init", "epoch-001", "epoch-003", "epoch-007", "final"), group="hflip",
         probe="orbit", layers=None):  # fmt: skip
    """A board of models -> (timm name, changes of the recipe); `value` (model, seed, state) -> {metric: Measure}."""
    plan, results = Grid("grown", schema.Pack.group, {}, ()), {}
    for model, (timm, changes) in models.items():
        for seed in range(seeds):
            for state in states:
                cell = Cell("grown", model, f"s{seed}", state, group, probe)
                plan.cells[cell] = ("digits", None)
                facts = {
                    "architecture": timm,
                    "recipe": RECIPE | changes,
                    "weights": f"{model} {seed} {state}",
                    "data": "d",
                }
                rows = [Layer(*row) for row in layers(model, seed, state)] if layers else []
                conf = {"model": {"timm": timm, "source": "train", "args": {}, "image_size": 32}}
                results[cell] = Result(names(plan, cell), metrics=value(model, seed, state), layers=rows, config=conf,
                                       provenance=facts)  # fmt: skip
    return Board(plan, results, {})
