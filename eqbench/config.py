"""Composition of conf/ and the cells that a suite asks for; every mistake is one UserError (no torch).

Each option (conf/<kind>/<id>.yaml) is composed by Hydra once, then merged into its schema, strictly: an unknown key,
a wrong type or a value out of range never gets past this file, however it was written (YAML, override, `+override`).
An override is `<kind>.<id>.<key>=<value>`, e.g. `probe.orbit.images=32`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eqbench import schema
from eqbench.errors import UserError, one_line, unknown

SCHEMAS: dict[str, Any] = {
    "suite": schema.Suite,
    "model": schema.Model,
    "data": schema.Data,
    "train": schema.Train,
    "group": schema.Group,
    "probe": schema.PROBES,
}
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
UNGROUPED = "none"  # the trivial group: probes that have no group write their one cell here


def conf_dir() -> Path:
    """conf/ of the working folder, else the one beside the package."""
    here = Path("conf")
    return (here if here.is_dir() else Path(__file__).parents[1] / "conf").resolve()


def options(kind: str) -> list[str]:
    """The ids under conf/<kind>/, sorted."""
    return sorted(path.stem for path in (conf_dir() / kind).glob("*.yaml"))


def parse_overrides(overrides: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Split each `<kind>.<id>.<key>=<value>` into (kind, id, `<key>=<value>`).

    Raises:
        UserError: the form is another, or names a kind or an id that does not exist.
    """
    parsed = []
    for text in overrides:
        match = re.fullmatch(r"[+~]{0,2}([a-z]+)\.(.+?)=(.*)", str(text), re.DOTALL)
        if not match:
            raise UserError(f"override {text!r}: expected <kind>.<id>.<key>=<value>, e.g. probe.orbit.images=32")
        kind, path, value = match.groups()
        if kind not in SCHEMAS:
            raise unknown(f"kind in override {text!r}:", kind, SCHEMAS)
        ids = [name for name in options(kind) if path.startswith(f"{name}.")]  # an id may hold dots: the longest wins
        if not ids:
            raise unknown(f"{kind} in override {text!r}:", path.split(".")[0], options(kind))
        name = max(ids, key=len)
        parsed.append((kind, name, f"{path.removeprefix(name + '.')}={value}"))
    return tuple(parsed)


@cache
def load(kind: str, name: str, overrides: tuple[tuple[str, str, str], ...] = ()) -> Any:
    """The option `name` of `kind`, composed and checked: an instance of its schema.

    Args:
        overrides: as `parse_overrides` gives them; those of other options are ignored.

    Raises:
        UserError: names the file, the key, what is allowed and the nearest spelling.
    """
    if name not in options(kind):
        raise unknown(kind, name, options(kind))
    if not ID.fullmatch(name):
        raise UserError(f"conf/{kind}/{name}.yaml: an id holds only letters, digits and _ . + -")
    where = f"conf/{kind}/{name}.yaml"
    target = SCHEMAS[kind]
    if kind == "probe":
        if name not in schema.PROBES:
            raise unknown("probe", name, schema.PROBES)
        target = schema.PROBES[name]
    own = [text for k, n, text in overrides if (k, n) == (kind, name)]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            tree = hydra_compose(f"{kind}/{name}", overrides=[f"++{kind}.{text}" for text in own])
        raw = OmegaConf.to_container(tree, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{where}: {one_line(error)}" + (f" (overrides: {', '.join(own)})" if own else "")) from None
    finally:
        GlobalHydra.instance().clear()
    # An empty file composes to nothing: every key is then missing, and said to be.
    return _strict(target, raw.get(kind) if isinstance(raw, dict) and raw else {}, where)


def _strict(target: Any, raw: Any, where: str) -> Any:
    """Merge plain data into the dataclass `target`, refusing what it does not declare."""
    _check_keys(target, raw, where)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(target), raw))
    except MissingMandatoryValue as error:
        key = str(error).rsplit(": ", 1)[-1]
        raise UserError(f"{where}: the key {key} is missing") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except OmegaConfBaseException as error:
        first, *_ = str(error).splitlines()
        raise UserError(f"{where}: {error.full_key or ''}: {first}") from None


def _check_keys(target: Any, raw: Any, where: str) -> None:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: expected keys and values, got {raw!r}")
    hints = get_type_hints(target)
    names = [field.name for field in fields(target)]
    for key, value in raw.items():
        if key not in names:
            raise (
                unknown("key", str(key), names)
                if not where
                else UserError(f"{where}: {unknown('key', str(key), names)}")
            )
        nested = get_args(hints[key])[1:]  # dict[str, Block] -> (Block,)
        if nested and is_dataclass(nested[0]):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key}: expected named blocks, got {value!r}")
            for block, body in value.items():
                _check_keys(nested[0], body, f"{where}: {key}.{block}")


def digest(value: Any) -> str:
    """sha256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def plain(kind: str, name: str, overrides: tuple[tuple[str, str, str], ...] = ()) -> dict[str, Any]:
    """An option as plain JSON data with sorted keys, a probe's version included; shared, not to be written to."""
    conf = load(kind, name, overrides)
    tree: dict[str, Any] = json.loads(json.dumps(asdict(conf), sort_keys=True))
    if hasattr(conf, "version"):
        tree["version"] = conf.version
    return tree


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
    overrides: tuple[tuple[str, str, str], ...]

    def option(self, kind: str, name: str) -> Any:
        return load(kind, name, self.overrides)

    def plain(self, kind: str, name: str) -> dict[str, Any]:
        return plain(kind, name, self.overrides)

    def config(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's numbers, weights and images apart: shared sub-dictionaries, not copies."""
        data, images = self.cells[cell]
        return {
            "data": self.plain("data", data) | {"id": data},
            "group": self.plain("group", cell.group) if cell.group != UNGROUPED else {},
            "model": self.plain("model", cell.model),
            "probe": self.plain("probe", cell.probe) | ({"images": images} if images else {}),
        }

    def probe(self, cell: Cell) -> Any:
        """The probe's options for a cell."""
        conf, images = self.option("probe", cell.probe), self.cells[cell][1]
        return replace(conf, images=images) if images else conf

    def data(self, cell: Cell) -> str:
        """The id of the data set that a cell is measured on."""
        return self.cells[cell][0]

    def expectation(self, cells: Sequence[Cell]) -> str:
        """A digest of the resolved configuration of these cells: a job refuses to run under another one."""
        return digest({str(cell): self.config(cell) for cell in cells})

    def weights(self, model: str) -> dict[str, Any]:
        """What decides a model's weights: its configuration and, if it is trained here, the recipe and its data."""
        conf = self.option("model", model)
        tree: dict[str, Any] = {"model": {k: v for k, v in self.plain("model", model).items() if k != "batch"}}
        if conf.source is schema.Source.train:
            recipe = self.option("train", conf.train)
            tree |= {"train": self.plain("train", conf.train), "data": self.plain("data", recipe.data)}
        return tree

    def stamps(self, cells: Sequence[Cell]) -> dict[str, str]:
        """`stamps` of the data of these cells."""
        return stamps({name: self.plain("data", name) for name in {self.data(cell) for cell in cells}})

    def trained(self, model: str) -> bool:
        return self.option("model", model).source is schema.Source.train

    def part(self, cell: Cell) -> str:
        """The name of the job that runs a cell, below its (model, seed, state)."""
        return {"run": "all", "group": cell.group, "cell": f"{cell.group}+{cell.probe}"}[self.pack]

    @cached_property
    def parts(self) -> dict[tuple[str, str, str, str], list[Cell]]:
        """(model, seed, state, part) -> its cells, sorted."""
        parts: dict[tuple[str, str, str, str], list[Cell]] = {}
        for cell in self.cells:
            parts.setdefault((cell.model, cell.seed, cell.state, self.part(cell)), []).append(cell)
        return {key: sorted(cells) for key, cells in sorted(parts.items())}

    @cached_property
    def models(self) -> list[str]:
        """The models of the cells, sorted."""
        return sorted({cell.model for cell in self.cells})


def stamps(tree: Any) -> dict[str, str]:
    """Path -> digest of the names, sizes and times of each local file or folder that resolved options read.

    It changes when the files may have; whether they really did, their sha256 tells.

    Raises:
        UserError: one of them does not exist.
    """
    paths: list[str | None] = []
    for conf in tree.values():
        if conf.get("kind") == "folder":
            paths += [conf["train"], conf["test"]]
        elif conf.get("source") in ("file", "folder"):
            paths.append(conf["path"])
    return {path: _stamp(path) for path in sorted(filter(None, paths))}


@cache
def _stamp(path: str) -> str:
    root = Path(path)
    if not root.exists():
        raise UserError(f"{path}: no such file or folder (working folder: {Path.cwd()})")
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return digest([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])


def load_suite(name: str | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Compose a suite and every option that it names, and list its cells; nothing else is read.

    Args:
        name: an id of conf/suite; None: the `suite` of conf/config.yaml.
        overrides: `<kind>.<id>.<key>=<value>`; each must reach an option of this suite.

    Raises:
        UserError: the first mistake found, in the user's words.
    """
    name = name or _strict(schema.Main, _yaml(conf_dir() / "config.yaml"), "conf/config.yaml").suite
    parsed = parse_overrides(overrides)
    suite = load("suite", name, parsed)
    plan = Plan(name, suite.pack, {}, parsed)
    for block_name, block in suite.blocks.items():
        where = f"conf/suite/{name}.yaml: blocks.{block_name}"
        for cell in _block_cells(plan, block, where):
            images = (block.data, block.images)
            if plan.cells.setdefault(cell, images) != images:
                raise UserError(f"{where}: {cell} is also in another block, with other images: name it in one of them")
    used = _used(plan, suite)
    for kind, option, text in parsed:
        if (kind, option) not in used:
            raise UserError(f"override {kind}.{option}.{text}: suite '{name}' does not use {kind} '{option}'")
    return plan


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {one_line(error)}") from None


def _block_cells(plan: Plan, block: schema.Block, where: str) -> Iterator[Cell]:
    try:
        plan.option("data", block.data)
        for kind, names in (("group", block.groups), ("probe", block.probes)):
            for option in names:
                plan.option(kind, option)
        for model in block.models:
            conf = plan.option("model", model)
            if conf.source is schema.Source.train:
                recipe = plan.option("train", conf.train)
                plan.option("data", recipe.data)
                if recipe.augment != UNGROUPED:
                    plan.option("group", recipe.augment)
    except UserError as error:
        raise UserError(f"{where}: {error}" if str(error).startswith("unknown") else str(error)) from None
    for model in block.models:
        for seed in range(block.seeds):
            for state in _states(plan, model, seed, block.states, where):
                for probe in block.probes:
                    groups = block.groups if schema.PROBES[probe].grouped else [UNGROUPED]
                    for group in groups:
                        yield Cell(plan.name, model, f"s{seed}", state, group, probe)


def _states(plan: Plan, model: str, seed: int, states: list[str], where: str) -> Iterator[str]:
    conf = plan.option("model", model)
    for state in states:
        match = schema.STATE.fullmatch(state)
        if match and match[1]:
            saved = plan.option("train", conf.train).save if conf.train else []
            if int(match[1]) not in saved:
                raise UserError(
                    f"{where}: model '{model}' has no state '{state}': add {int(match[1])} to `save` of its recipe"
                    if conf.train
                    else f"{where}: model '{model}' is not trained here and has only the states init and final"
                )
        if state == "final" and seed > 0 and conf.source is not schema.Source.train:
            continue  # fetched weights exist once
        yield state


def _used(plan: Plan, suite: schema.Suite) -> set[tuple[str, str]]:
    used = {("suite", plan.name)}
    for block in suite.blocks.values():
        used |= {("data", block.data)}
        used |= {("group", option) for option in block.groups} | {("probe", option) for option in block.probes}
        for model in block.models:
            used.add(("model", model))
            if plan.trained(model):
                train = plan.option("model", model).train
                used |= {("train", train), ("data", plan.option("train", train).data)}
                used.add(("group", plan.option("train", train).augment))
    return used
