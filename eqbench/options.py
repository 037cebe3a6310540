"""Options of conf/, composed once and checked: every mistake is one UserError that names file and key (no torch).

Each option (conf/<kind>/<id>.yaml) is composed once, by Hydra if there is anything to compose, then merged into its
schema, strictly: an unknown key, a wrong type or a value out of range never gets past this file, however it was written
(YAML, override, `+override`).
An override is `<kind>.<id>.<key>=<value>`, e.g. `probe.orbit.images=32`; with the id `*` it is of every option of its kind.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eqbench import schema
from eqbench.errors import UserError, one_line, unknown

Overrides = tuple[tuple[str, str, str], ...]  # (kind, id, "<key>=<value>")
SCHEMAS: dict[str, Any] = {
    "suite": schema.Suite,
    "model": schema.Model,
    "data": schema.Data,
    "train": schema.Train,
    "group": schema.Group,
    "probe": schema.PROBES,
}
UNTRAINED, PRETRAINED = "untrained-", "pretrained-"
# Models that need no file: of these prefixes and a timm name -> where their weights are from, and the form of the name.
UNWRITTEN = {
    UNTRAINED: (schema.Source.random, "<architecture>, without a pretrained tag"),
    PRETRAINED: (schema.Source.hub, "<architecture>.<tag>, as timm names its weights"),
}
MADE = ("ensemble", "symmetrised")  # sources of models that are made of another one
INHERITED = ("timm", "args", "image_size")  # keys that a model made of another one has from it
EVERY = "*"  # the id of an override of all options of a kind
INTEGER = re.compile(r"(\w+)=(-?\d{1,9})")  # an override that means the same to Hydra and to us
COMPOSED = re.compile(r"\$\{|@|\bdefaults\b")  # what only Hydra reads: interpolations, packages, defaults lists
KEY = re.compile(r"\w+([.-]\w+)*")
ID = re.compile(r"(?!all$)[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # `all` names the part that is a whole run


def conf_dir() -> Path:
    """conf/ of the working folder, else the one beside the package."""
    here = Path("conf")
    return (here if here.is_dir() else Path(__file__).parents[1] / "conf").resolve()


def ids(kind: str) -> list[str]:
    """The ids under conf/<kind>/, sorted."""
    return sorted(path.stem for path in (conf_dir() / kind).glob("[!.]*.yaml"))


def parse_overrides(overrides: Sequence[str]) -> Overrides:
    """Split each `<kind>.<id>.<key>=<value>` into (kind, id, `<key>=<value>`).

    Raises:
        UserError: the form is another, or names a kind or an id that does not exist.
    """
    parsed = []
    for text in overrides:
        match = re.fullmatch(r"\+{0,2}([a-z]+)\.(.+?)=(.*)", str(text), re.DOTALL)
        if not match:
            raise UserError(f"override {text!r}: expected <kind>.<id>.<key>=<value>, e.g. probe.orbit.images=32")
        kind, path, value = match.groups()
        if kind not in SCHEMAS:
            raise unknown(f"kind in override {text!r}:", kind, SCHEMAS)
        found = [name for name in ids(kind) if path.startswith(f"{name}.")]  # an id may hold dots: the longest wins
        parts = path.split(".")
        if path.startswith(f"{EVERY}.") or (kind == "model" and path.startswith(UNTRAINED) and len(parts) > 1):
            found.append(parts[0])
        elif kind == "model" and path.startswith(PRETRAINED) and len(parts) > 2:
            found.append(".".join(parts[:2]))
        if not found:
            raise unknown(f"{kind} in override {text!r}:", path.split(".")[0], ids(kind))
        name = max(found, key=len)
        key = path.removeprefix(f"{name}.")
        if not KEY.fullmatch(key):
            raise UserError(f"override {text!r}: {key!r} is no key: expected <kind>.<id>.<key>=<value>")
        parsed.append((kind, name, f"{key}={value}"))
    return tuple(parsed)


@cache
def load(kind: str, name: str, overrides: Overrides = (), first: bool = False) -> Any:
    """The option `name` of `kind`, composed and checked: an instance of its schema.

    Args:
        overrides: as `parse_overrides` gives them; those of other options are ignored.
        first: refuse a model that is made of another one.

    Raises:
        UserError: names the file, the key, what is allowed and the nearest spelling.
    """
    where, given = f"conf/{kind}/{name}.yaml", {}
    if name not in ids(kind):
        prefix = next((prefix for prefix in UNWRITTEN if kind == "model" and name.startswith(prefix)), None)
        if prefix is None:
            raise unknown(kind, name, ids(kind))
        architecture, where = name.removeprefix(prefix), f"model '{name}'"
        source, form = UNWRITTEN[prefix]
        if ("." in architecture) != (prefix == PRETRAINED):
            raise UserError(f"{where}: expected {prefix}{form}")
        check_timm_name(architecture, where)
        given = {"timm": architecture, "source": str(source)}
    if not ID.fullmatch(name):
        raise UserError(f"{where}: an id is up to 100 letters, digits and _ . -, and not `all`")
    target = SCHEMAS[kind]
    if kind == "probe":
        if name not in schema.PROBES:
            raise unknown("probe", name, schema.PROBES)
        target = schema.PROBES[name]
    own = [text for k, n, text in overrides if k == kind and n in (name, EVERY)]
    integers = {match[1]: int(match[2]) for text in own if (match := INTEGER.fullmatch(text))}
    simple = len(integers) == len(own)
    if given and simple:
        return _strict(target, given | integers, where)  # nothing to compose
    path = conf_dir() / kind / f"{name}.yaml"
    try:
        if not given and simple and not COMPOSED.search(path.read_text(encoding="utf-8")):
            tree: Any = {kind: OmegaConf.merge(OmegaConf.load(path), integers)}  # as Hydra's, a hundred times as fast
        else:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                texts = [f"{key}={value}" for key, value in given.items()] + own
                edits = [f"++{kind}.{text}" for text in texts]
                tree = hydra_compose(None if given else f"{kind}/{name}", overrides=edits)
        raw = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {one_line(error)[:500]}" + (f" (overrides: {', '.join(own)})" if own else "")
        ) from None
    finally:
        GlobalHydra.instance().clear()
    # An empty file composes to nothing: every key is then missing, and said to be.
    said: Any = raw.get(kind) if isinstance(raw, dict) and raw else {}
    if kind == "model" and isinstance(said, dict) and said.get("of") is not None:
        if first:
            raise UserError(f"expected a model that is not made of another one, and '{name}' is made of '{said['of']}'")
        said = _inherited(said, overrides, where)
    elif kind == "model" and isinstance(said, dict) and said.get("source") in MADE:
        raise UserError(f"{where}: of: expected the model that it is made of, because source is '{said['source']}'")
    return _strict(target, said, where)


def _inherited(raw: dict[str, Any], overrides: Overrides, where: str) -> dict[str, Any]:
    """What is said of a model made of another one, with what it has from that one."""
    of = str(raw["of"])
    try:
        origin: schema.Model = load("model", of, overrides, first=True)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("conf/") else f"{where}: of: {error}") from None
    own = {key: getattr(origin, key) for key in INHERITED}
    for key, value in own.items():
        if raw.get(key, value) != value:
            raise UserError(f"{where}: {key}: is that of '{of}', {value!r}: leave it out")
    return {"batch": origin.batch} | raw | own


def _strict(target: Any, raw: Any, where: str) -> Any:
    """Merge plain data into the dataclass `target`, refusing what it does not declare."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: expected keys and values, got {raw!r}")
    names = [field.name for field in fields(target)]
    for key in raw:
        if key not in names:
            raise UserError(f"{where}: {unknown('key', str(key), names)}")
    if target is schema.Suite and "blocks" in raw:
        if not isinstance(raw["blocks"], dict):
            raise UserError(f"{where}: blocks: expected named blocks, got {raw['blocks']!r}")
        blocks = {name: _strict(schema.Block, body, f"{where}: blocks.{name}") for name, body in raw["blocks"].items()}
        raw = raw | {"blocks": blocks}
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(target), raw))
    except MissingMandatoryValue as error:
        key = str(error).splitlines()[0].rsplit(": ", 1)[-1]
        raise UserError(f"{where}: the key {key} is missing") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key, said = getattr(error, "full_key", None) or _misfit(target, raw), str(error).splitlines()[0][:300]
        if "is not a ListConfig" in said:
            said = f"expected a list, e.g. [{raw.get(key)}]"
        raise UserError(f"{where}: {key}: {said}") from None


def _misfit(target: Any, raw: dict[str, Any]) -> str:
    """The first key whose value alone does not fit the schema."""
    for key, value in raw.items():
        try:
            OmegaConf.merge(OmegaConf.structured(target), {key: value})
        except (OmegaConfBaseException, TypeError, ValueError):
            expected = getattr(get_type_hints(target)[key], "__name__", get_type_hints(target)[key])
            return f"{key} (expected {expected}, got {value!r:.80})"
    return "(the whole)"


def digest(value: Any) -> str:
    """sha256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def plain(kind: str, name: str, overrides: Overrides = ()) -> dict[str, Any]:
    """An option as plain JSON data with sorted keys, a probe's version included; shared, not to be written to."""
    conf = load(kind, name, overrides)
    tree: dict[str, Any] = json.loads(json.dumps(asdict(conf), sort_keys=True))
    if hasattr(conf, "version"):
        tree["version"] = conf.version
    if isinstance(conf, schema.Model) and not conf.derived:
        tree = {key: value for key, value in tree.items() if key not in schema.DERIVED}
    return tree


def main() -> schema.Main:
    """conf/config.yaml, checked."""
    path = conf_dir() / "config.yaml"
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {one_line(error)}") from None
    conf: schema.Main = _strict(schema.Main, raw, "conf/config.yaml")
    return conf


@cache
def _timm_sources() -> dict[str, str]:
    """The model files of timm by their module, read without importing timm (and so torch)."""
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    return {path.stem: path.read_text() for path in sorted((Path(spec.origin).parent / "models").glob("*.py"))}


@cache
def timm_modules() -> dict[str, str]:
    """The names that timm's model files register -> their module."""
    found: dict[str, str] = {}
    for module, text in _timm_sources().items():
        renamed = re.findall(r"register_model_deprecations\(__name__, \{(.*?)\}\)", text, re.DOTALL)
        names = re.findall(r"^\s*'([\w.]+)'\s*:", "\n".join(renamed), re.MULTILINE)
        names += re.findall(r"^@register_model\ndef (\w+)\(", text, re.MULTILINE)
        found |= dict.fromkeys(names, module)
    return found


def check_timm_name(name: str, where: str) -> None:
    """Refuse a timm name whose architecture or pretrained tag timm does not have; `hf-hub:` names pass.

    Raises:
        UserError: with the nearest spelling.
    """
    if name.startswith("hf-hub:"):
        return
    architecture, _, tag = name.partition(".")
    if architecture not in timm_modules():
        raise UserError(f"{where}: timm: {unknown('architecture', architecture, timm_modules())}")
    if tag and not any(re.search(rf"['\"]{re.escape(name)}['\"]", text) for text in _timm_sources().values()):
        from eqbench.models import check_name  # not written out in the sources: timm itself knows

        try:
            check_name(name)
        except UserError as error:
            raise UserError(f"{where}: timm: {error}") from None
