"""Names and values full of HTML, quotes, shell and path separators: they stay in their folder, and nothing in them runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from undisturbed import forget

from eqbench.cli import main

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "eqbench/templates/report.html.j2"
SCRIPT = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
BREAKOUTS = [
    SCRIPT,
    f"'\">{SCRIPT}",
    f"</td></table></svg></style>{SCRIPT}",
    "${document.title='ran'}{{ 7*7 }}{% raw %}",
]
IDS = ["../up", "/etc/x", "a/b", "a b", "<b>", 'a"b', "a'b", "$(touch ran)", "`touch ran`", "a;b", "..", ".", "all", "-rf", "a\nb"]  # fmt: skip


@pytest.mark.parametrize("kind", ["model", "group", "probe", "data", "train", "suite"])
def test_ids_that_are_no_file_names_are_refused(folder, kind, capsys, reliability):
    """As a file of conf/, where a file can be called so, and where a suite or a command names them."""
    before = {p for p in folder.parent.rglob("*") if "conf" not in p.parts}
    key = {"model": "models: [{}]", "group": "groups: [{}]", "probe": "probes: [{}]", "data": "data: {}"}
    for name in IDS:
        forget()
        if "/" not in name and name not in (".", ".."):
            Path("conf", kind, f"{name}.yaml").write_text("{}")
        if kind in key:
            fine = {"models": "[given]", "data": "digits", "groups": "[c4]", "probes": "[orbit]"}
            block = fine | dict([key[kind].format(json.dumps(name)).split(": ", 1)])
            Path("conf/suite/tiny.yaml").write_text("blocks: {a: {" + ", ".join(map(": ".join, block.items())) + "}}")
            assert main(["collect"]) == 2, name
        elif kind == "train":
            Path("conf/model/small.yaml").write_text(f"timm: test_resnet\nsource: train\ntrain: {json.dumps(name)}\n")
            assert main(["train", "model=small"]) == 2, name
        else:
            assert main(["collect", f"suite={name}"]) == 2, name
        assert main(["fetch", f"model={name}"]) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert {p for p in folder.parent.rglob("*") if "conf" not in p.parts} == before
    assert not list(folder.rglob("ran"))
    reliability(f"hostile id of a {kind}", len(IDS))


def _images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for number, text in enumerate(BREAKOUTS * 3):
        path = folder / text.replace("/", "\N{FRACTION SLASH}") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def page(folder, verbs):
    """A board whose every free text is hostile: licence, origin, classes, and what a foreign result says of itself."""
    _images(folder / "images")
    given = "timm: test_resnet\nsource: file\npath: {}\nlicence: {}\nimage_size: 32\nargs: {{num_classes: 4}}\n"
    text = (folder / "conf/model/given.yaml").read_text()
    assert "num_classes: 10" in text
    import torch
    from safetensors.torch import save_file

    from eqbench import schema
    from eqbench.models import create

    torch.manual_seed(1)
    weights = f"{BREAKOUTS[0].replace('/', '')}.safetensors"
    model = schema.Model("test_resnet", schema.Source.file, path=weights, image_size=32)
    save_file(create(model, 4).state_dict(), folder / weights)
    (folder / "conf/model/given.yaml").write_text(given.format(json.dumps(weights), json.dumps(BREAKOUTS[1])))
    (folder / "conf/data/own.yaml").write_text("kind: folder\ntrain: images\ntest: images\n")
    (folder / "conf/suite/tiny.yaml").write_text(
        "blocks: {a: {models: [given], data: own, groups: [hflip, c4], probes: [orbit, sharpness], states: [final]}}"
    )
    for argv in (("fetch", "model=given"), ("probe", "model=given")):
        done = verbs(folder, *argv)
        assert done["code"] == 0, done["err"]
    hostile, count = iter(BREAKOUTS * 99), 0
    for path in folder.glob("data/cells/tiny/given/s0/final/*/*.json"):
        tree = json.loads(path.read_text())
        del tree["checksum"]  # of somebody who made the file on purpose
        for key in ("family", "architecture", "git", "dtype", "source", "licence", "torch"):
            tree["provenance"][key] = next(hostile)
            count += 1
        tree["cost"]["device"] = next(hostile)
        for layer in tree["layers"]:
            layer["name"] += next(hostile)
            count += 1
        if "c4" in path.parts:
            tree |= {"status": "failed", "reason": next(hostile), "metrics": {}, "layers": []}
        path.write_text(json.dumps(tree))
    for verb in ("collect", "plot", "report"):
        done = verbs(folder, verb, "suite=tiny")
        assert done["code"] == 0, done["err"]
    return folder / "reports/tiny/index.html", count


def test_the_page_runs_nothing_of_it(page, reliability):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the page is not tested in a browser")
    path, count = page
    said = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for script in (True, False):  # with the page's protection against foreign scripts, and without
            text = path.read_text()
            assert "Content-Security-Policy" in text
            opened = path if script else path.with_name("unprotected.html")
            if not script:
                opened.write_text(text.replace("Content-Security-Policy", "nothing"))
            tab = browser.new_context(offline=True).new_page()
            tab.on("console", lambda message: said.append(message.text))
            tab.on("dialog", lambda dialog: said.append(dialog.message))
            tab.goto(opened.as_uri())
            assert tab.title() == "eqbench: tiny"
            assert tab.locator("img").count() == 0
            assert tab.locator("script").count() == TEMPLATE.read_text().count("<script")
            assert SCRIPT in tab.inner_text("body", timeout=5000) or SCRIPT in tab.text_content("body")
            for box in tab.locator("th button").all()[:3]:
                box.click()
            assert tab.title() == "eqbench: tiny"
        browser.close()
    assert said == []
    reliability("hostile text on the page, in Chromium", count)


def test_values_are_no_shell(folder, reliability):
    """An override passes through Snakemake, a shell and Hydra, and arrives as it was written."""
    hostile = "a'b\"c $(touch ran) `touch ran`; touch ran & | > ran {wildcards} {{x}} %s !x \\ *"
    quoted = hostile.replace("'", "\\'")
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
    overrides = json.dumps([f"model.given.licence='{quoted}'"])
    command += ["data/weights/given/s0/card.json", "--config", f"overrides={overrides}"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "data/weights/given/s0/card.json").read_text())["licence"] == hostile
    assert not list(folder.rglob("ran"))
    reliability("shell in the value of an override")
