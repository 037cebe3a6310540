"""Training of any timm architecture from scratch: from a task to its states and, last, its card."""

from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from eqbench import data, models, results, schema, weights
from eqbench.data import Dataset
from eqbench.epochs import Run
from eqbench.errors import UserError
from eqbench.fetch import versions
from eqbench.options import digest
from eqbench.tasks import Task

CHECKPOINT = "checkpoint.pt"


def train(task: Task, root: Path) -> None:
    """Train one (model, seed) and write its states, then its card, below root/model/seed/.

    States: `init`, `epoch-NNN` for each epoch in `recipe.saved`, `final`; with `model_ema` all but `init` hold the
    averaged weights. The card is written last: where it exists, the training is complete, and is not done again if it
    is this very one.

    Raises:
        UserError: data that cannot be trained on; groups that do not act on its images; a loss that is not finite.
    """
    model_id, seed, recipe = task.model_id, task.seed, task.recipe
    whole = data.load(recipe.data, task.data, schema.Split.train)
    test_set = data.load(recipe.data, task.data, schema.Split.test, recipe.test_images)
    _check(whole, test_set)
    shas = {"train": whole.sha256, "test": test_set.sha256}
    acting = [group and group.name for group in (task.augment, task.penalised)]
    identity = digest([model_id, seed, task.config, asdict(recipe), acting, shas, versions()])
    if weights.intact(root, model_id, seed, identity=identity):
        return
    run = Run(task, root, whole, test_set)
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
        "timm": task.conf.timm,
        "licence": task.conf.licence,
        "origin": "trained here",
        "states": run.states,
        "facts": models.facts(run.averaged.module),
        "versions": versions(),
        "config": task.config,
        "identity": identity,
        "recipe": asdict(recipe),
        "metrics": run.history,
        "data": {"name": recipe.data, "sha256": shas, "images": {"train": len(run.train_set), "test": len(test_set)}},
    }
    if run.recorder:
        record = weights.dynamics_path(root, model_id, seed)
        results.write_json(record, run.recorder.log)
        facts["dynamics"] = weights.sha256_file(record)
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
