"""The options of training, conf/train/<id>.yaml: keys, types, defaults and ranges (no torch)."""

import math
from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from eqbench.schema.checks import UNGROUPED, require
from eqbench.schema.probes import CONTINUOUS, FINITE


class Opt(StrEnum):
    """The optimiser, by timm's names: `sgd` has coupled weight decay, and Nesterov's momentum unless that is 0."""

    adamw = "adamw"
    sgd = "sgd"


class Form(StrEnum):
    """What a penalty punishes: see eqbench/penalties.py."""

    twirl = "twirl"  # the variance of the logits over a finite group
    lie = "lie"  # the derivative of the logits along a continuous group


FORMS = {Form.twirl: FINITE, Form.lie: CONTINUOUS}  # the kind of group that each takes


@dataclass
class Penalty:
    """A term of the training loss that vanishes where the network has a symmetry."""

    form: Form = MISSING
    group: str = MISSING  # the option of conf/group: finite for twirl, continuous for lie
    weight: float = MISSING  # the loss is cross-entropy + weight x penalty

    def __post_init__(self) -> None:
        require(self.group != UNGROUPED, "penalty.group", "an option of conf/group", self.group)
        require(math.isfinite(self.weight) and self.weight > 0, "penalty.weight", "a positive number", self.weight)


@dataclass
class Train:
    """conf/train/<id>.yaml: cosine schedule with warm-up; keys are named as in timm's train script."""

    data: str = MISSING  # the option of conf/data
    epochs: int = MISSING
    opt: Opt = Opt.adamw
    momentum: float = 0.9  # of sgd; 0: plain gradient descent
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_epochs: int = 1
    weight_decay: float = 0.05
    batch_size: int = 128
    smoothing: float = 0.1  # label smoothing
    clip_grad: float | None = None  # largest gradient norm
    augment: str = UNGROUPED  # a random element of this group (conf/group) acts on each image
    penalty: Penalty | None = None  # on broken symmetry
    # The share of the training images, the same of each class. Updates an epoch stay: what is left out is data alone.
    fraction: float = 1.0
    updates: int | None = None  # an epoch; None: one pass over all training images
    test_images: int | None = None  # measured after each epoch; None: all
    amp: bool = True  # bfloat16 autocast, on a GPU only
    model_ema: bool = False  # final is the exponential moving average of the weights
    model_ema_decay: float = 0.99
    dynamics: int = 0  # updates between two steps that are recorded (eqbench/dynamics); 0: none is
    save: list[int] | None = None  # epochs kept as states epoch-NNN; None: 1, 2, 4, 8, ... below `epochs`

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(
            0 <= self.warmup_epochs < self.epochs or self.warmup_epochs == 0,
            "warmup_epochs",
            f"in 0..{max(self.epochs - 1, 0)}, because epochs is {self.epochs}",
            self.warmup_epochs,
        )
        for key in ("lr", "model_ema_decay"):
            value = getattr(self, key)
            require(math.isfinite(value) and value > 0, key, "a positive number", value)
        require(self.model_ema_decay < 1, "model_ema_decay", "below 1", self.model_ema_decay)
        require(0 <= self.min_lr <= self.lr, "min_lr", f"in 0..lr ({self.lr})", self.min_lr)
        decay = self.weight_decay
        require(math.isfinite(decay) and decay >= 0, "weight_decay", "at least 0", decay)
        require(2 <= self.batch_size <= 2**20, "batch_size", "in 2..2^20", self.batch_size)
        for key in ("smoothing", "momentum"):
            require(0 <= getattr(self, key) < 1, key, "in [0, 1)", getattr(self, key))
        for key in ("updates", "test_images"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, "at least 1", value)
        require(0 < self.fraction <= 1, "fraction", "in (0, 1]", self.fraction)
        clip = self.clip_grad
        require(clip is None or (math.isfinite(clip) and clip > 0), "clip_grad", "a positive number", clip)
        require(0 <= self.dynamics <= 10**6, "dynamics", "in 0..1000000", self.dynamics)
        for epoch in self.save or []:
            require(1 <= epoch <= self.epochs, "save", f"epochs in 1..{self.epochs}", epoch)

    @property
    def saved(self) -> list[int]:
        """The epochs kept as states, ascending.

        >>> Train("digits", 10).saved, Train("digits", 8).saved, Train("digits", 1, warmup_epochs=0).saved
        ([1, 2, 4, 8], [1, 2, 4], [])
        """
        if self.save is not None:
            return sorted(set(self.save))
        return [2**k for k in range(self.epochs.bit_length()) if 2**k < self.epochs]

    @property
    def groups(self) -> dict[str, str]:
        """Use -> the option of conf/group: those that training makes the network symmetric under, if any."""
        uses = {"augment": self.augment, "penalty": self.penalty.group if self.penalty else UNGROUPED}
        return {use: group for use, group in uses.items() if group != UNGROUPED}
