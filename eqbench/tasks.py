"""What one training is given: its model, seed, recipe, data and groups, resolved (no torch)."""

from dataclasses import dataclass
from typing import Any

from eqbench import schema
from eqbench.config import Plan
from eqbench.groups import Group


@dataclass(frozen=True)
class Task:
    """What is trained: one model and seed.

    Attributes:
        model_id: id of conf/model.
        seed: s0, s1, ...: initialisation, order of the images, augmentation, dropout.
        data: the option that `recipe.data` names: its train split is trained on, its test split measured after each epoch.
        config: what decides the weights, as `Plan.weights` gives it: if it changes, training starts anew.
        augment, penalised: the groups that the recipe names; None: none.
    """

    model_id: str
    seed: str
    conf: schema.Model
    recipe: schema.Train
    data: schema.Data
    config: dict[str, Any]
    augment: Group | None = None
    penalised: Group | None = None

    @classmethod
    def of(cls, plan: Plan, model_id: str, seed: str) -> "Task":
        """The task of a model that is trained here."""
        conf = plan.option("model", model_id)
        recipe = plan.option("train", conf.train)
        used = {use: plan.option("group", name).group for use, name in recipe.groups.items()}
        return cls(
            model_id,
            seed,
            conf,
            recipe,
            plan.option("data", recipe.data),
            plan.weights(model_id),
            used.get("augment"),
            used.get("penalty"),
        )
