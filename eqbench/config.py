"""A suite as the cells that it asks for, their resolved configuration, and the jobs that run them (no torch)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eqbench import options, schema
from eqbench.errors import UserError
from eqbench.options import Overrides, digest, load, parse_overrides, plain
from eqbench.schema import ALL, UNGROUPED
from eqbench.stamps import stamps
from eqbench.suites import check_model, check_split, states_of, used_by


@dataclass(frozen=True, order=True)
class Cell:
    """One (suite, model, seed, state, group, probe): one result file."""

    suite: str
    model: str
    seed: str
    state: str
    group: str
    probe: str

    @property
    def path(self) -> Path:
        return Path(self.suite, self.model, self.seed, self.state, self.group, f"{self.probe}.json")

    def __str__(self) -> str:
        return "/".join((self.model, self.seed, self.state, self.group, self.probe))


@dataclass(frozen=True)
class Plan:
    """A suite, its options composed, and its cells."""

    name: str
    pack: schema.Pack
    cells: dict[Cell, tuple[str, int | None]]  # cell -> id of its data, and how many images if the suite says so
    overrides: Overrides

    def option(self, kind: str, name: str) -> Any:
        return load(kind, name, self.overrides)

    def plain(self, kind: str, name: str) -> dict[str, Any]:
        return plain(kind, name, self.overrides)

    def config(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's numbers, weights and images apart: shared sub-dictionaries, not copies."""
        data, images = self.cells[cell]
        averaged = self.option("model", cell.model).group  # by a derived model: how it acts may be in no weights
        return {
            "data": self.plain("data", data) | {"id": data},
            "group": self.plain("group", cell.group) if cell.group != UNGROUPED else {},
            "model": self.plain("model", cell.model),
            "probe": self.plain("probe", cell.probe) | ({"images": images} if images else {}),
        } | ({"symmetry": self._action(averaged)} if averaged is not None else {})

    def probe(self, cell: Cell) -> Any:
        """The probe's options for a cell."""
        conf, images = self.option("probe", cell.probe), self.cells[cell][1]
        return replace(conf, images=images) if images else conf

    def data(self, cell: Cell) -> str:
        """The id of the data set that a cell is measured on."""
        return self.cells[cell][0]

    def others(self, cell: Cell) -> dict[str, tuple[str, str]]:
        """The weights that a cell compares its own with: `init` of its seed, and the next seed's of its state, if any.

        Returns:
            Name -> (seed, state): {"init": ("s0", "init"), "s1": ("s1", "final")}; empty for probes that compare nothing.
        """
        if not schema.PROBES[cell.probe].compares:
            return {}
        seeds = self._seeds[cell.model, cell.state]
        following = seeds[(seeds.index(cell.seed) + 1) % len(seeds)]
        found = {} if cell.state == "init" else {"init": (cell.seed, "init")}
        return found if following == cell.seed else found | {following: (following, cell.state)}

    @cached_property
    def _seeds(self) -> dict[tuple[str, str], list[str]]:
        """(model, state) -> its seeds, in order."""
        found: dict[tuple[str, str], set[str]] = {}
        for cell in self.cells:
            found.setdefault((cell.model, cell.state), set()).add(cell.seed)
        return {key: sorted(seeds, key=lambda seed: int(seed[1:])) for key, seeds in found.items()}

    def cards(self, cells: Sequence[Cell]) -> list[tuple[str, str]]:
        """The (model, seed) whose weights these cells read, sorted."""
        own = {(cell.model, cell.seed) for cell in cells}
        return sorted(own | {(cell.model, seed) for cell in cells for seed, _ in self.others(cell).values()})

    def expectation(self, cells: Sequence[Cell]) -> str:
        """A digest of the resolved configuration of these cells: a job refuses to run under another one."""
        return digest({str(cell): self.config(cell) for cell in cells})

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every option that the suite is made of: a job on another machine refuses to run under another one."""
        used = used_by(self, self.option("suite", self.name)) - {("group", UNGROUPED)}
        return digest([{f"{kind}/{name}": self.plain(kind, name) for kind, name in used}, self.arguments])

    def weights(self, model: str) -> dict[str, Any]:
        """What decides a model's weights: its configuration and, if it is trained here, the recipe and its data.

        Of a model made of another: what decides that one's, with `of` for its configuration, and what is done with them.
        """
        conf = self.option("model", model)
        if conf.derived:
            own = {key: value for key, value in self.plain("model", model).items() if key != "batch"}
            made = self.weights(conf.of)
            made |= {"of": made["model"], "model": own}
            if conf.group is not None:
                made["symmetry"] = self._action(conf.group)
            if conf.data is not None:
                made["data"] = self.plain("data", conf.data)
            return made
        idle = (
            ("batch",) if conf.source is not schema.Source.train else ("batch", "licence", "sha256", "path", "package")
        )
        tree: dict[str, Any] = {"model": {k: v for k, v in self.plain("model", model).items() if k not in idle}}
        if conf.source is schema.Source.train:
            recipe = self.option("train", conf.train)
            tree |= {"train": self.plain("train", conf.train), "data": self.plain("data", recipe.data)}
            for use, name in recipe.groups.items():
                tree[{"augment": "group"}.get(use, use)] = self._action(name)
        return tree

    def stamps(self, cells: Sequence[Cell]) -> dict[str, str]:
        """`stamps` of the data of these cells."""
        return stamps(
            {f"conf/data/{name}.yaml": self.plain("data", name) for name in sorted({self.data(cell) for cell in cells})}
        )

    def _action(self, group: str) -> dict[str, str]:
        """What decides how a group acts."""
        conf = self.plain("group", group)
        return {key: conf[key] for key in ("action", "file", "sha256") if conf[key]}

    def trained(self, model: str) -> bool:
        return self.option("model", model).source is schema.Source.train

    def verb(self, model: str) -> str:
        """What brings a model's weights: `train`, `derive` or `fetch`."""
        return "derive" if self.option("model", model).derived else "train" if self.trained(model) else "fetch"

    def origin(self, model: str) -> str:
        """The model that one is made of; itself, if it has weights of its own."""
        return self.option("model", model).of or model

    def members(self, model: str, seed: str) -> list[tuple[str, str]]:
        """The (model, seed) whose weights a model is made of, in order; none, if it has weights of its own.

        Ensembles share no member: sK is made of the seeds K·members, ..., (K+1)·members − 1.
        """
        conf = self.option("model", model)
        count = conf.members if conf.source is schema.Source.ensemble else 1
        first = int(seed[1:]) * count
        return [(conf.of, f"s{first + i}") for i in range(count)] if conf.derived else []

    def networks(self, model: str, seeds: int) -> int:
        """How many networks a model has in a block of so many seeds: as many ensembles as these are enough for, at least one."""
        conf = self.option("model", model)
        return max(1, seeds // conf.members) if conf.source is schema.Source.ensemble else seeds

    def part(self, cell: Cell) -> tuple[str, str, str, str]:
        """The job that runs a cell: (model, seed, state, part), `all` for each."""
        state = ALL if self.pack is schema.Pack.seed else cell.state
        part = {schema.Pack.group: cell.group, schema.Pack.cell: f"{cell.group}+{cell.probe}"}.get(self.pack, ALL)
        return cell.model, cell.seed, state, part

    @cached_property
    def parts(self) -> dict[tuple[str, str, str, str], list[Cell]]:
        """(model, seed, state, part) -> its cells, sorted."""
        parts: dict[tuple[str, str, str, str], list[Cell]] = {}
        for cell in self.cells:
            parts.setdefault(self.part(cell), []).append(cell)
        return {key: sorted(cells) for key, cells in sorted(parts.items())}

    @property
    def arguments(self) -> list[str]:
        """The overrides, the suite's own first, as a job takes them."""
        return [".".join(override) for override in self.overrides]

    @cached_property
    def models(self) -> list[str]:
        """The models of the cells, sorted."""
        return sorted({cell.model for cell in self.cells})

    @cached_property
    def origins(self) -> list[str]:
        """The models of the cells, and those that they are made of, sorted."""
        return sorted({name for model in self.models for name in (model, self.origin(model))})

    def needed(self, cells: Iterable[Cell]) -> list[tuple[str, str]]:
        """The (model, seed) whose weights these cells need on disk, those that others are made of among them, sorted."""
        own = {(cell.model, cell.seed) for cell in cells}
        return sorted(own | {member for one in own for member in self.members(*one)})


def load_suite(name: str | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Compose a suite and every option that it names, and list its cells; nothing else is read.

    Args:
        name: an id of conf/suite; None: the `suite` of conf/config.yaml.
        overrides: `<kind>.<id>.<key>=<value>`; each must reach an option of this suite.

    Raises:
        UserError: the first mistake found, in the user's words.
    """
    name = name or options.main().suite
    parsed = parse_overrides(overrides)
    suite = load("suite", name, parsed)
    try:
        own = parse_overrides(suite.overrides)
        if any(kind == "suite" for kind, _, _ in own):
            raise UserError("a suite has overrides of its options, not of suites")
    except UserError as error:
        raise UserError(f"conf/suite/{name}.yaml: overrides: {error}") from None
    parsed = (*own, *parsed)
    plan = Plan(name, suite.pack, {}, parsed)
    for block_name, block in suite.blocks.items():
        where = f"conf/suite/{name}.yaml: blocks.{block_name}"
        for cell in _block_cells(plan, block, where):
            images = (block.data, block.images)
            if plan.cells.setdefault(cell, images) != images:
                raise UserError(f"{where}: {cell} is also in another block, with other images: name it in one of them")
    used = used_by(plan, suite)
    for kind, option, text in parsed:
        if (kind, option) not in used and (option != options.EVERY or kind not in dict(used)):
            raise UserError(f"override {kind}.{option}.{text}: suite '{name}' does not use {kind} '{option}'")
    return plan


def _block_cells(plan: Plan, block: schema.Block, where: str) -> Iterator[Cell]:
    try:
        probed = plan.option("data", block.data)
        kinds = {group: plan.option("group", group).kind for group in block.groups}
        for probe in block.probes:
            conf = plan.option("probe", probe)
            check_split(probed, block.data, conf.split)
            if block.images:
                replace(conf, images=block.images)  # checks the probe's other numbers against it
            if conf.states and not set(conf.states) & set(block.states) and schema.SAVED not in block.states:
                raise UserError(f"probes: '{probe}' takes {' and '.join(conf.states)} alone, and states has it not")
            if conf.kinds and not set(conf.kinds) & set(kinds.values()):
                raise UserError(f"probes: '{probe}' takes {' and '.join(conf.kinds)} groups, and there is none here")
        fitting = {kind for probe in block.probes for kind in schema.PROBES[probe].kinds}
        for group, kind in kinds.items():
            if fitting and kind not in fitting:
                raise UserError(f"groups: '{group}' is {kind}, and no probe here takes such groups")
        for model in dict.fromkeys(name for own in block.models for name in (own, plan.origin(own))):
            check_model(plan, model)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("conf/") else f"{where}: {error}") from None
    for model in block.models:
        for seed in range(plan.networks(model, block.seeds)):
            for state in states_of(plan, model, seed, block.states, where):
                for probe in block.probes:
                    taken, only = schema.PROBES[probe].kinds, schema.PROBES[probe].states
                    if only and state not in only:
                        continue
                    groups = [group for group in block.groups if plan.option("group", group).kind in taken]
                    for group in groups if taken else [UNGROUPED]:
                        yield Cell(plan.name, model, f"s{seed}", state, group, probe)
