"""One training, epoch by epoch; killed at any moment, it goes on from its last finished epoch.

On a CPU (and with the same number of threads) the weights are the same to the bit, interrupted or not: the order of the
images, the group elements that act on them and the dropout masks are all drawn from generators seeded by (seed, epoch).
"""

import io
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from eqbench import feeding, models, results, schema, weights
from eqbench.data import Dataset
from eqbench.dynamics import Recorder
from eqbench.errors import Misfit, Unsupported, UserError
from eqbench.options import digest
from eqbench.penalties import penalty
from eqbench.tasks import Task


class Run:
    """One training between two epochs: everything that the next epoch depends on."""

    def __init__(self, task: Task, root: Path, train_set: Dataset, test_set: Dataset) -> None:
        """Nothing is written yet.

        Args:
            root: of the weights. train_set: the whole of it, of which the recipe may leave out some.

        Raises:
            UserError: the network or the groups of the recipe do not take images of this size.
        """
        self.task, self.root, self.device = task, root, models.device()
        self.epoch, self.identity = 0, ""
        self.history: list[dict[str, float]] = []
        self.states: dict[str, str] = {}
        recipe = task.recipe
        module = models.init_state(task.conf, len(train_set.classes), int(task.seed[1:]))
        self.network = models.Network(module).to(self.device)
        models.check_size(self.network, task.model_id)
        self._check_groups()
        crop_pct = task.data.crop_pct or self.network.crop_pct
        kept = feeding.share(train_set, recipe.fraction)
        self.train_set = feeding.Images(kept, self.network, crop_pct, self.device)
        self.test_set = feeding.Images(test_set, self.network, crop_pct, self.device)
        self.optimizer = _optimizer(module, recipe)
        self.batch = min(recipe.batch_size, len(train_set))
        # An epoch; a last, smaller batch is left out, as in timm.
        self.updates = recipe.updates or len(train_set) // self.batch
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
        try:
            recorded = bool(recipe.dynamics)
            self.recorder = Recorder.of(self.network, self.optimizer, self.train_set, recipe) if recorded else None
        except Unsupported as error:
            raise UserError(f"conf/train/{task.conf.train}.yaml: dynamics: {error}: set it to 0") from None

    def _check_groups(self) -> None:
        for use, group in (("augment", self.task.augment), ("penalty.group", self.task.penalised)):
            try:
                if group:
                    feeding.check(group, self.network.size)
            except Misfit as error:
                raise UserError(f"conf/train/{self.task.conf.train}.yaml: {use}: {error}") from None

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
                if self.recorder:
                    self.recorder.load(saved["dynamics"])
                return
        for path in [p for p in checkpoint.parent.glob("*") if p.is_dir() and schema.STATE.fullmatch(p.name)]:
            shutil.rmtree(path)  # of another training
        checkpoint.unlink(missing_ok=True)
        self.save("init")

    def save(self, state: str) -> None:
        folder = weights.state_dir(self.root, self.task.model_id, self.task.seed, state)
        self.states[state] = models.save_state(self.averaged.module, folder)

    def step(self, checkpoint: Path) -> None:
        """One epoch, its metrics, its state if the recipe keeps it, and last the checkpoint."""
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            number = int(digest([self.task.seed, self.epoch])[:15], 16)
            torch.manual_seed(number)  # dropout and its like
            losses = self._train(torch.Generator().manual_seed(number))
        test_loss, test_accuracy = self._test()
        self.epoch += 1
        losses["test_loss"] = test_loss
        if not all(map(math.isfinite, losses.values())):
            raise UserError(
                f"model '{self.task.model_id}', seed {self.task.seed}: the loss is not finite in epoch {self.epoch}: in "
                f"conf/train/{self.task.conf.train}.yaml lower lr (now {self.task.recipe.lr:g}), or set clip_grad"
            )
        lr = self.optimizer.param_groups[0]["lr"]  # of the last update
        self.history.append({"epoch": self.epoch, "lr": lr, **losses, "test_accuracy": test_accuracy})
        if self.epoch in self.task.recipe.saved:
            self.save(f"epoch-{self.epoch:03d}")
        self._write(checkpoint)

    def _order(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The rows of each batch of an epoch: permutations, as many as it takes where some images are left out."""
        images, needed = len(self.train_set), self.batch * self.updates
        rounds = [torch.randperm(images, generator=generator) for _ in range(math.ceil(needed / images))]
        return torch.cat(rounds)[:needed].split(self.batch)

    def _train(self, generator: torch.Generator) -> dict[str, float]:
        """One epoch of updates: the means over them of the cross-entropy and, if there is one, of the penalty."""
        order, network = self._order(generator), self.network
        network.train()
        totals: dict[str, Tensor] = {}
        for update, rows in enumerate(order, start=self.epoch * self.updates):
            self.schedule.step_update(update)
            losses = self._losses(rows, generator)
            self.optimizer.zero_grad()
            total = self._total(losses)
            total.backward()
            if self.task.recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(network.parameters(), self.task.recipe.clip_grad)
            with self.recorder.step(update, total.detach()) if self.recorder else nullcontext():
                self.optimizer.step()
            if self.ema:
                self.ema.update(network, step=update + 1)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach().double()
        return {name: float(total) / len(order) for name, total in totals.items()}

    def _losses(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The cross-entropy and, if the recipe has one, the penalty on the training images at `rows`."""
        task, recipe = self.task, self.task.recipe
        x, y = self.train_set.batch(rows)
        if task.augment:
            x = feeding.augment(task.augment, x, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.amp and self.device.type == "cuda"):
            losses = {"train_loss": F.cross_entropy(self.network(x), y, label_smoothing=recipe.smoothing)}
        if recipe.penalty:
            assert task.penalised
            losses["penalty"] = penalty(self.network, x, recipe.penalty.form, task.penalised, generator)
        return losses

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        """What is descended on."""
        weight = self.task.recipe.penalty.weight if self.task.recipe.penalty else 0.0
        return losses["train_loss"] + weight * losses["penalty"] if weight else losses["train_loss"]

    @torch.inference_mode()
    def _test(self) -> tuple[float, float]:
        """Mean cross-entropy, without label smoothing, and accuracy on the test images."""
        network = self.averaged.eval()
        total, correct = 0.0, 0
        for rows in torch.arange(len(self.test_set)).split(self.task.recipe.batch_size):
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
            "dynamics": self.recorder.state if self.recorder else None,
        }
        buffer = io.BytesIO()
        torch.save(tree, buffer)
        results.write_bytes(checkpoint, buffer.getvalue())


def _optimizer(module: nn.Module, recipe: schema.Train) -> torch.optim.Optimizer:
    """As in timm: no weight decay on biases, norms and what the architecture excludes."""
    sgd = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    options: dict[str, Any] = sgd if recipe.opt == schema.Opt.sgd else {}
    return create_optimizer_v2(module, recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, **options)
