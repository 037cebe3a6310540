"""Training of any timm architecture from scratch; killed at any moment, it goes on from its last finished epoch.

On a CPU (and with the same number of threads) the weights are the same to the bit, interrupted or not: the order of the
images, the group elements that act on them and the dropout masks are all drawn from generators seeded by (seed, epoch).
"""

import io
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from eqbench import data, models, results, schema, weights
from eqbench.data import Dataset
from eqbench.errors import UserError
from eqbench.feeding import Images, act
from eqbench.fetch import versions
from eqbench.groups import FiniteGroup
from eqbench.options import digest

CHECKPOINT = "checkpoint.pt"


def train(
    model_id: str,
    conf: schema.Model,
    recipe: schema.Train,
    data_name: str,
    data_conf: schema.Data,
    seed: str,
    root: Path,
    config: dict[str, Any],
    *,
    augment: FiniteGroup,
) -> None:
    """Train one (model, seed) and write its states, then its card, below root/model/seed/.

    States: `init`, `epoch-NNN` for each epoch in `recipe.save`, `final`; with `model_ema` all but `init` hold the
    averaged weights. The card is written last: where it exists, the training is complete, and is not done again if it
    is this very one.

    Args:
        model_id: id of conf/model.
        data_name: id of conf/data; its train split is trained on, its test split measured after each epoch.
        seed: s0, s1, ...: initialisation, order of the images, augmentation, dropout.
        config: what decides the weights, as `Plan.weights` gives it: if it changes, training starts anew.
        augment: a uniformly drawn element of this group acts on each training image (the action of `recipe.augment`).

    Raises:
        UserError: data that cannot be trained on; a loss that is not finite.
    """
    train_set, test_set = (data.load(data_name, data_conf, split) for split in (schema.Split.train, schema.Split.test))
    _check(train_set, test_set)
    shas = {"train": train_set.sha256, "test": test_set.sha256}
    identity = digest([model_id, seed, config, asdict(recipe), augment.name, shas, versions()])
    if weights.intact(root, model_id, seed, identity=identity):
        return
    run = _Run(model_id, conf, recipe, seed, root, data_conf, train_set, test_set, augment)
    card = weights.card_path(root, model_id, seed)
    card.unlink(missing_ok=True)
    checkpoint = card.parent / CHECKPOINT
    run.start(checkpoint, identity)
    with tqdm(total=recipe.epochs, initial=run.epoch, desc=f"{model_id} {seed}", unit="epoch", disable=None) as bar:
        while run.epoch < recipe.epochs:
            run.step(checkpoint)
            bar.set_postfix({k: f"{run.history[-1][k]:.4f}" for k in ("train_loss", "test_accuracy")}, refresh=False)
            bar.update()
    run.save("final")
    facts = {
        "model": model_id,
        "seed": seed,
        "source": str(schema.Source.train),
        "timm": conf.timm,
        "licence": conf.licence,
        "origin": "trained here",
        "states": run.states,
        "facts": models.facts(run.averaged.module),
        "versions": versions(),
        "config": config,
        "identity": identity,
        "recipe": asdict(recipe),
        "metrics": run.history,
        "data": {"name": data_name, "sha256": shas, "images": {"train": len(train_set), "test": len(test_set)}},
    }
    weights.write_card(root, model_id, seed, facts)
    checkpoint.unlink()


def _check(train_set: Dataset, test_set: Dataset) -> None:
    where = f"conf/data/{train_set.name}.yaml"
    for split, dataset in (("train", train_set), ("test", test_set)):
        if dataset.labels is None:
            raise UserError(f"{where}: the {split} images have no labels: nothing can be trained on them")
    if train_set.classes != test_set.classes:
        odd = sorted(set(train_set.classes) ^ set(test_set.classes))
        raise UserError(f"{where}: train and test must have the same classes; only one of them has {', '.join(odd)}")
    if len(train_set) < 2:
        raise UserError(f"{where}: expected at least 2 images to train on, got {len(train_set)}")


class _Run:
    """One training between two epochs: everything that the next epoch depends on."""

    def __init__(
        self,
        model_id: str,
        conf: schema.Model,
        recipe: schema.Train,
        seed: str,
        root: Path,
        data_conf: schema.Data,
        train_set: Dataset,
        test_set: Dataset,
        augment: FiniteGroup,
    ) -> None:
        self.model_id, self.conf, self.recipe, self.seed, self.root = model_id, conf, recipe, seed, root
        self.augment, self.device = augment, models.device()
        self.epoch, self.identity = 0, ""
        self.history: list[dict[str, float]] = []
        self.states: dict[str, str] = {}
        module = models.init_state(conf, len(train_set.classes), int(seed[1:]))
        self.network = models.Network(module).to(self.device)
        models.check_size(self.network, model_id)
        crop_pct = data_conf.crop_pct or self.network.crop_pct
        self.train_set = Images(train_set, self.network, crop_pct, self.device)
        self.test_set = Images(test_set, self.network, crop_pct, self.device)
        # As in timm: no weight decay on biases, norms and what the architecture excludes.
        self.optimizer = create_optimizer_v2(module, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.batch = min(recipe.batch_size, len(train_set))
        self.updates = len(train_set) // self.batch  # an epoch; a last, smaller batch is left out, as in timm
        warmup = recipe.warmup_epochs * self.updates
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=recipe.epochs * self.updates - warmup,
            lr_min=recipe.min_lr,
            warmup_t=warmup,
            warmup_lr_init=recipe.lr / max(warmup, 1),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(self.network, recipe.model_ema_decay, use_warmup=True) if recipe.model_ema else None

    @property
    def averaged(self) -> models.Network:
        """The network whose weights are the result."""
        return self.ema.module if self.ema else self.network

    def start(self, checkpoint: Path, identity: str) -> None:
        """Go on from the checkpoint if it is of this very training, else write `init` and begin."""
        self.identity = identity
        if checkpoint.exists():
            try:
                saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
                same = saved["identity"] == identity
            except Exception as error:
                raise UserError(
                    f"{checkpoint}: not a readable checkpoint ({type(error).__name__}): delete it"
                ) from None
            if same:
                self.epoch, self.history, self.states = saved["epoch"], saved["history"], saved["states"]
                self.network.load_state_dict(saved["network"])
                self.optimizer.load_state_dict(saved["optimizer"])
                if self.ema:
                    self.ema.module.load_state_dict(saved["ema"])
                return
        for path in [p for p in checkpoint.parent.glob("*") if p.is_dir() and schema.STATE.fullmatch(p.name)]:
            shutil.rmtree(path)  # of another training
        checkpoint.unlink(missing_ok=True)
        self.save("init")

    def save(self, state: str) -> None:
        folder = weights.state_dir(self.root, self.model_id, self.seed, state)
        self.states[state] = models.save_state(self.averaged.module, folder)

    def step(self, checkpoint: Path) -> None:
        """One epoch, its metrics, its state if the recipe keeps it, and last the checkpoint."""
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            number = int(digest([self.seed, self.epoch])[:15], 16)
            torch.manual_seed(number)  # dropout and its like
            train_loss = self._train(torch.Generator().manual_seed(number))
        test_loss, test_accuracy = self._test()
        self.epoch += 1
        if not (math.isfinite(train_loss) and math.isfinite(test_loss)):
            raise UserError(
                f"model '{self.model_id}', seed {self.seed}: the loss is not finite in epoch {self.epoch}: in "
                f"conf/train/{self.conf.train}.yaml lower lr (now {self.recipe.lr:g}), or set clip_grad"
            )
        lr = self.optimizer.param_groups[0]["lr"]  # of the last update
        losses = {"train_loss": train_loss, "test_loss": test_loss}
        self.history.append({"epoch": self.epoch, "lr": lr, **losses, "test_accuracy": test_accuracy})
        if self.epoch in self.recipe.save:
            self.save(f"epoch-{self.epoch:03d}")
        self._write(checkpoint)

    def _train(self, generator: torch.Generator) -> float:
        """One pass over the training images: the mean loss."""
        recipe, elements, network = self.recipe, self.augment.elements(), self.network
        order = torch.randperm(len(self.train_set), generator=generator).split(self.batch)[: self.updates]
        network.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for update, rows in enumerate(order, start=self.epoch * self.updates):
            self.schedule.step_update(update)
            x, y = self.train_set.batch(rows)
            x = act(self.augment, x, torch.randint(len(elements), (len(rows),), generator=generator))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.amp and self.device.type == "cuda"):
                loss = F.cross_entropy(network(x), y, label_smoothing=recipe.smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            if recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_grad)
            self.optimizer.step()
            if self.ema:
                self.ema.update(network, step=update + 1)
            total += loss.detach()
        return float(total) / len(order)

    @torch.inference_mode()
    def _test(self) -> tuple[float, float]:
        """Mean cross-entropy, without label smoothing, and accuracy on the test images."""
        network = self.averaged.eval()
        total, correct = 0.0, 0
        for rows in torch.arange(len(self.test_set)).split(self.recipe.batch_size):
            x, y = self.test_set.batch(rows)
            logits = network(x).float()
            total += float(F.cross_entropy(logits, y, reduction="sum"))
            correct += int((logits.argmax(1) == y).sum())
        return total / len(self.test_set), correct / len(self.test_set)

    def _write(self, checkpoint: Path) -> None:
        tree = {
            "identity": self.identity,
            "epoch": self.epoch,
            "history": self.history,
            "states": self.states,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
        }
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        results.write_bytes(checkpoint, buffer.getvalue())
