"""The folder of a small suite, a process that runs verbs in it, and the stages of an undisturbed run."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from undisturbed import FILES, Stage, contents, forget, part
from verbs import IN_PLACE, Verbs

from eqbench import schema
from eqbench.models import create

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="session")
def verbs():
    process = Verbs()
    yield process
    process.close()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A working folder in which nothing has run yet."""
    folder = tmp_path_factory.mktemp("pristine")
    shutil.copytree(CONF, folder / "conf")
    for name, text in FILES.items():
        (folder / "conf" / name).write_text(text)
    torch.manual_seed(1)
    given = schema.Model("test_resnet", schema.Source.file, path="given.safetensors", image_size=32)
    save_file(create(given, 10).state_dict(), folder / "given.safetensors")
    return folder


@pytest.fixture
def folder(pristine, tmp_path, monkeypatch) -> Path:
    """A copy of it to work in."""
    copy = tmp_path / "work"
    shutil.copytree(pristine, copy)
    monkeypatch.chdir(copy)
    forget()
    yield copy
    forget()


@pytest.fixture(scope="session")
def stages(verbs, pristine, tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    folder, found = root / "folder", {}
    shutil.copytree(pristine, folder)
    with contextlib.chdir(folder):
        forget()
        given, small = part("given"), part("small")
    forget()
    commands = [("fetch", "model=given"), ("train", "model=small"), given, small]
    for argv in [*commands, ("collect", "suite=tiny"), ("plot", "suite=tiny"), ("report", "suite=tiny")]:
        before = root / f"before-{len(found)}-{argv[0]}"
        shutil.copytree(folder, before)
        done = verbs(folder, *argv)
        assert done["code"] == 0, done["err"]
        assert IN_PLACE not in done["err"], done["err"]
        every = (*found[argv[0]].all, argv) if argv[0] in found else (argv,)
        found[argv[0]] = Stage(argv, before, contents(folder), done["seconds"], done["operations"], every)
    return found
