"""What a suite's options must have in common, and what they ask for together: states, and each other (no torch)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from eqbench import options, schema
from eqbench.errors import UserError

if TYPE_CHECKING:
    from eqbench.config import Plan


def check_model(plan: "Plan", model: str) -> None:
    """Refuse a model whose architecture, recipe, data or origin is none that it can be made with.

    Raises:
        UserError: names the file and the key.
    """
    conf = plan.option("model", model)
    if conf.derived:
        _check_derived(plan, model)
    options.check_timm_name(conf.timm, f"conf/model/{model}.yaml")
    if conf.source is schema.Source.train:
        recipe = plan.option("train", conf.train)
        learnt = plan.option("data", recipe.data)
        if learnt.kind is schema.DataKind.photos or not learnt.labels:
            raise UserError(f"conf/train/{conf.train}.yaml: data: '{recipe.data}' has no labels to train on")
        check_split(learnt, recipe.data, schema.Split.train)
        _check_groups(plan, recipe, f"conf/train/{conf.train}.yaml")


def check_split(conf: schema.Data, name: str, split: schema.Split) -> None:
    """Refuse a data set without the images that are asked for.

    Raises:
        UserError: names the file and the key.
    """
    if conf.kind in (schema.DataKind.folder, schema.DataKind.timm) and not getattr(conf, split):
        raise UserError(f"conf/data/{name}.yaml: {split}: is missing, and the {split} images are asked for")


def _check_groups(plan: "Plan", recipe: schema.Train, where: str) -> None:
    kinds = {use: plan.option("group", name).kind for use, name in recipe.groups.items()}
    if recipe.penalty is not None and kinds["penalty"] != schema.FORMS[recipe.penalty.form]:
        form, name = recipe.penalty.form, recipe.penalty.group
        needed = f"form '{form}' takes a {schema.FORMS[form]} group"
        raise UserError(f"{where}: penalty.group: {needed}, and '{name}' is {kinds['penalty']}")


def _check_derived(plan: "Plan", model: str) -> None:
    """Refuse a model that cannot be made of the one that it names."""
    conf, where = plan.option("model", model), f"conf/model/{model}.yaml"
    source = plan.option("model", conf.of).source
    if conf.source is schema.Source.ensemble and source not in (schema.Source.train, schema.Source.random):
        raise UserError(
            f"{where}: of: '{conf.of}' is not trained here: there is one of it, and an ensemble takes several"
        )
    if conf.group is not None and plan.option("group", conf.group).kind != schema.FINITE:
        raise UserError(f"{where}: group: '{conf.group}' is not a finite group")
    if conf.source is schema.Source.symmetrised and conf.how is not schema.How.logits:
        if conf.data is None and source is not schema.Source.train:
            raise UserError(
                f"{where}: data: expected a data set for batch-norm statistics, because '{conf.of}' is not trained here"
            )
        if conf.data is not None:
            check_split(plan.option("data", conf.data), conf.data, schema.Split.train)


def states_of(plan: "Plan", model: str, seed: int, states: list[str], where: str) -> Iterator[str]:
    """The states that a block asks of a model, each once; `saved` is every state that its recipe leaves.

    Raises:
        UserError: one of them does not exist.
    """
    conf = plan.option("model", plan.origin(model))
    saved = plan.option("train", conf.train).saved if conf.source is schema.Source.train else []
    if schema.SAVED in states:
        ends = [] if conf.source is schema.Source.random else ["final"]
        states = list(dict.fromkeys(["init", *(f"epoch-{epoch:03d}" for epoch in saved), *ends, *states]))
        states.remove(schema.SAVED)
    for state in states:
        match = schema.STATE.fullmatch(state)
        if match and match[1] and conf.source is not schema.Source.random and int(match[1]) not in saved:
            raise UserError(
                f"{where}: model '{model}' has no state '{state}': add {int(match[1])} to `save` of its recipe"
                if conf.train
                else f"{where}: model '{model}' is not trained here and has only the states init and final"
            )
        if state != "init" and conf.source is schema.Source.random:
            raise UserError(f"{where}: model '{model}' is untrained and has no state '{state}': set `states: [init]`")
        if state == "final" and seed > 0 and conf.source is not schema.Source.train:
            continue  # fetched weights exist once
        yield state


def used_by(plan: "Plan", suite: schema.Suite) -> set[tuple[str, str]]:
    """The options that a suite is made of: (kind, id)."""
    found = {("suite", plan.name)}
    for block in suite.blocks.values():
        found |= {("data", block.data)}
        found |= {("group", option) for option in block.groups} | {("probe", option) for option in block.probes}
        for model in {name for own in block.models for name in (own, plan.origin(own))}:
            conf = plan.option("model", model)
            found |= {("model", model)} | {(kind, one) for kind in ("group", "data") if (one := getattr(conf, kind))}
            if plan.trained(model):
                train = plan.option("model", model).train
                recipe = plan.option("train", train)
                found |= {("train", train), ("data", recipe.data)} | {
                    ("group", name) for name in recipe.groups.values()
                }
    return found
