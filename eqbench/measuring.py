"""What a job measures with: the images, the weights of each state, and what is recorded beside the numbers.

Nothing here imports torch until a cell has to be measured.
"""

import platform
import subprocess
from collections.abc import Hashable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqbench import __version__, data, groups, preprocessing, results, schema, weights
from eqbench.cells import names
from eqbench.config import Cell, Plan
from eqbench.errors import UserError
from eqbench.groups import FiniteGroup, Group
from eqbench.results import Result
from eqbench.schema import UNGROUPED

if TYPE_CHECKING:
    from torch import Tensor

    from eqbench.models import Network
    from eqbench.probes.base import Subject

GAPS = {"orbit": "placebo_gap", "circuits": "weight_gap"}  # what a probe cannot say without a placebo


class Images:
    """The images of a job's cells: a data set is read once, when first needed, for all that is asked of it."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self.plan = plan
        self._asked = {self.key(cell) for cell in cells}
        self._read: dict[tuple[str, schema.Split, int], data.Dataset] = {}

    def key(self, cell: Cell) -> tuple[str, schema.Split, int]:
        """What tells one set of images from another: data, split, how many."""
        conf = self.plan.probe(cell)
        return self.plan.data(cell), conf.split, conf.images

    def of(self, cell: Cell) -> data.Dataset:
        key = self.key(cell)
        if key not in self._read:
            name, split, _ = key
            counts = [images for *of, images in self._asked if of == [name, split]]
            found = data.load_each(name, self.plan.option("data", name), split, counts)
            self._read |= {(name, split, images): each for images, each in zip(counts, found, strict=True)}
        return self._read[key]


class State:
    """One (model, seed, state) to measure: its weights, read when first needed, and the job's images."""

    def __init__(self, images: Images, where: tuple[str, str, str], root: Path) -> None:
        self.plan = images.plan
        self.images = images
        self.root = root
        self.where = where
        self.card = weights.read_card(root, *where[:2])
        self.sha256 = weights.check_state(root, *where)
        self._subjects: dict[tuple[str, schema.Split, int], Subject] = {}
        self._network: Network | None = None

    def identity(self, cell: Cell) -> str:
        model = self.where[0]
        read = [weights.check_state(self.root, model, *other) for other in self.plan.others(cell).values()]
        if schema.PROBES[cell.probe].recalls:
            read.append(str(self.card.get("dynamics")))
        return results.identity(self.plan.config(cell), " ".join([self.sha256, *read]), self.images.of(cell).sha256)

    def subject(self, cell: Cell) -> "Subject":
        """The network on the cell's images; cells with the same images share it, and so every forward pass."""
        from eqbench import models
        from eqbench.probes.base import Subject

        if self._network is None:
            self._network = models.load_state(weights.state_dir(self.root, *self.where)).to(models.device())
        network, images = self._network, self.images.of(cell)
        key = self.images.key(cell)
        if key not in self._subjects:
            crop = self.plan.option("data", key[0]).crop_pct or network.crop_pct
            batch = self.plan.option("model", cell.model).batch

            def batches(size: int) -> "Iterator[Tensor]":
                for x, _ in preprocessing.batches(images, size, batch, network.interpolation, crop):
                    yield x

            labels = self._labels(images)
            self._subjects[key] = Subject(network, network.size, batches, len(images), labels, images.clusters)
        subject = self._subjects[key]
        folders = {name: weights.state_dir(self.root, cell.model, *at) for name, at in self.plan.others(cell).items()}
        subject.training = partial(weights.read_dynamics, self.root, cell.model, cell.seed)
        subject.others = {name: partial(models.load_state, folder) for name, folder in folders.items()}
        return subject

    def _labels(self, images: data.Dataset) -> "Tensor | None":
        import torch

        if images.labels is None:
            return None
        classes = self.card["facts"]["num_classes"]
        if classes != len(images.classes):
            raise UserError(
                f"model '{self.where[0]}' tells {classes} classes apart and data '{images.name}' has {len(images.classes)}:"
                f" its labels mean nothing to it; set `labels: false` in conf/data/{images.name}.yaml, or use other data"
            )
        return torch.from_numpy(images.labels)

    def measure(self, cell: Cell, identity: str) -> Result:
        from eqbench import probes

        started = datetime.now(UTC).isoformat(timespec="seconds")
        group = placebo = None
        if cell.group != UNGROUPED:
            asked = self.plan.option("group", cell.group)
            group, placebo = asked.group, asked.other
        learned = self._learned(placebo)
        result = probes.measure(self.subject(cell), group, None if learned else placebo, self.plan.probe(cell))
        if learned and cell.probe in GAPS and result.metrics:
            result.metrics[GAPS[cell.probe]] = results.Measure(None, reason=learned)
        result.cell = names(self.plan, cell)
        result.digest = identity
        result.config = self.plan.config(cell)
        result.provenance = self._provenance(cell) | {"started": started}
        return result

    def _learned(self, placebo: Group | None) -> str | None:
        """Why a group is no placebo for these weights: training acted with its elements, or punished the lack of them, or
        they were averaged over them.
        """
        recipe = self.card.get("recipe") or {}
        if not isinstance(placebo, FiniteGroup):
            return None
        uses = {"symmetry": ("symmetrisation", self.plan.option("model", self.where[0]).group or UNGROUPED)}
        if self.where[2] != "init":
            uses["group"] = ("augmentation", recipe.get("augment", UNGROUPED))
            uses["penalty"] = ("penalty", (recipe.get("penalty") or {}).get("group", UNGROUPED))
        known: dict[str, set[Hashable]] = {}
        for key, (word, name) in uses.items():
            if name != UNGROUPED:
                conf = self.card["config"][key]
                known[f"{word} {name}"] = groups.get(conf["action"], conf.get("file")).keys()
        left = placebo.keys() - groups.get_finite(UNGROUPED).keys()
        if not left <= set().union(*known.values()):
            return None
        told = [text for text, keys in known.items() if left & keys]
        made = [text for text in told if text.startswith("symmetrisation")]
        parts = [text for text in told if text not in made]
        texts = [*(["training " + " and ".join(parts)] if parts else []), *made]
        return f"{placebo.name} is part of the {' and the '.join(texts)}, so it is no placebo"

    def _provenance(self, cell: Cell) -> dict[str, Any]:
        facts = {k: self.card["facts"].get(k) for k in ("family", "architecture", "parameters", "image_size")}
        origin = {k: self.card.get(k) for k in ("timm", "source", "licence", "origin")}
        recipe = self.card.get("recipe") or {}
        return {
            **facts,
            **origin,
            "augment": recipe.get("augment"),
            "recipe": recipe or None,
            "weights": self.sha256,
            "data": self.images.of(cell).sha256,
            "dtype": "float32",
            **environment(),
        }


@cache
def environment() -> dict[str, Any]:
    """Versions, the commit that the package is run from, and the SLURM job, if any."""
    folder = Path(__file__).parents[1]

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", "eqbench") if (folder / ".git").exists() else None
    return {
        "eqbench": __version__,
        "git": git("rev-parse", "HEAD") if changes is not None else None,
        "dirty": bool(changes) if changes is not None else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "timm_version": version("timm"),
        "slurm_job": environ.get("SLURM_JOB_ID"),
    }
