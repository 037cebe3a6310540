"""The structured schemas of everything under conf/: keys, types, defaults and ranges (no torch).

Every key is documented where it is declared; a value out of range is refused with the key's name.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from eqbench.schema.checks import ALL, UNGROUPED, Split, require
from eqbench.schema.groups import Group, check_placebo
from eqbench.schema.models import DERIVED, How, Model, Source
from eqbench.schema.probes import (
    CONTINUOUS,
    FINITE,
    PROBES,
    Ablation,
    Circuits,
    Consistency,
    Dynamics,
    GroupLandscape,
    Lie,
    Orbit,
    Probe,
    Robustness,
    Sharpness,
    Slices,
    Spectrum,
    Sweep,
    Symmetries,
)
from eqbench.schema.training import FORMS, Form, Opt, Penalty, Train

__all__ = [
    "ALL",
    "CONTINUOUS",
    "DERIVED",
    "FINITE",
    "FORMS",
    "PROBES",
    "UNGROUPED",
    "Ablation",
    "Block",
    "Circuits",
    "Consistency",
    "Data",
    "DataKind",
    "Dynamics",
    "Form",
    "Group",
    "GroupLandscape",
    "How",
    "Lie",
    "Main",
    "Model",
    "Opt",
    "Orbit",
    "Pack",
    "Penalty",
    "Probe",
    "Robustness",
    "Sharpness",
    "Slices",
    "Source",
    "Spectrum",
    "Split",
    "Suite",
    "Sweep",
    "Symmetries",
    "Train",
    "check_placebo",
]  # fmt: skip

STATE = re.compile(r"init|final|epoch-(\d{3,})")
SAVED = "saved"  # stands in a block for init, each epoch that a model's recipe saves, and final


class DataKind(StrEnum):
    """What kind of image set."""

    photos = "photos"
    digits = "digits"
    folder = "folder"
    timm = "timm"


class Pack(StrEnum):
    """How much of a suite one job runs: a cell, a group of one (model, seed, state), that run, or all states of its seed."""

    cell = "cell"
    group = "group"
    run = "run"
    seed = "seed"


@dataclass
class Data:
    """conf/data/<id>.yaml: a set of images, with or without labels."""

    kind: DataKind = MISSING
    train: str | None = None  # folder: path of the training images; timm: name of the split
    test: str | None = None  # folder: path of the images to probe; timm: name of the split
    name: str | None = None  # timm: any name that timm.data.create_dataset takes
    root: str | None = None  # timm: where that data set lies
    download: bool = False  # timm: fetch it into `root` if it is not there (torch/..., tfds/..., hfids/...)
    labels: bool = True  # False: ignore the labels and use the label-free form of every metric
    crop_pct: float | None = 1.0  # share of the resized image kept by the centre crop; None: the model's own

    def __post_init__(self) -> None:
        if self.kind is DataKind.folder:
            require(self.test is not None, "test", "a folder or tar of images, because kind is 'folder'", None)
        if self.kind is DataKind.timm:
            require(self.name is not None, "name", "a timm data set name, because kind is 'timm'", None)
            require(self.test is not None, "test", "the name of a split, because kind is 'timm'", None)
        if self.download:
            require(
                self.kind is DataKind.timm and bool(self.root), "download", "kind 'timm' and a `root` to fill", True
            )
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "crop_pct", "in (0, 1]", self.crop_pct)


@dataclass
class Block:
    """One grid of a suite: every model x seed x state x group x probe that takes the group, on one data set."""

    models: list[str] = MISSING
    data: str = MISSING
    groups: list[str] = field(default_factory=list)  # may be left out where no probe takes any
    probes: list[str] = MISSING
    seeds: int = 1  # s0, s1, ...; weights that are not trained here have one `final` (s0) and `seeds` times `init`
    states: list[str] = field(
        default_factory=lambda: ["init", "final"]
    )  # and epoch-NNN, or `saved`: all that there are
    images: int | None = None  # images a probe uses; None: the probe's own number

    def __post_init__(self) -> None:
        require(1 <= self.seeds <= 10**6, "seeds", "at least 1", self.seeds)
        require(self.images is None or self.images >= 8, "images", "at least 8", self.images)
        for state in self.states:
            match = STATE.fullmatch(state)
            canonical = match and (match[1] is None or state == f"epoch-{int(match[1]):03d}" != "epoch-000")
            require(bool(canonical) or state == SAVED, "states", "saved, init, final or epoch-NNN", state)
        for key in ("models", "groups", "probes", "states"):
            values = getattr(self, key)
            require(bool(values) or key == "groups", key, "at least one", values)
            require(len(set(values)) == len(values), key, "each named once", values)


@dataclass
class Suite:
    """conf/suite/<id>.yaml: what is measured, and how much of it one job runs."""

    pack: Pack = Pack.group
    blocks: dict[str, Block] = MISSING
    overrides: list[str] = field(default_factory=list)  # <kind>.<id>.<key>=<value>, before those of the command line

    def __post_init__(self) -> None:
        require(bool(self.blocks), "blocks", "at least one", self.blocks)


@dataclass
class Main:
    """conf/config.yaml."""

    suite: str = "demo"  # what a bare `snakemake` runs
