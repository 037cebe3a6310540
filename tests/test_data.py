import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from eqbench import data, preprocessing, schema
from eqbench.errors import UserError
from eqbench.schema import DataKind, Split

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
PHOTOS = schema.Data(kind=DataKind.photos)
DIGITS = schema.Data(kind=DataKind.digits)


def picture(seed: int, width: int = 12, height: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def tree(tmp_path):
    """Two classes of four PNGs each, and a file that is no image."""
    root = tmp_path / "set"
    for i in range(8):
        path = root / ("cat", "dog")[i // 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def folder(path, **keys):
    return schema.Data(kind=DataKind.folder, test=str(path), **keys)


def load(path, images=None, **keys):
    return data.load("set", folder(path, **keys), Split.test, images)


def stacked(dataset):
    return np.stack([np.asarray(dataset.images[i]) for i in range(len(dataset))])


def test_import_without_torch():
    code = "import sys, eqbench.data, eqbench.preprocessing; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_photos_are_fixed_square_crops_without_labels():
    first, again = (data.load("photos", PHOTOS, split) for split in Split)
    assert len(first) >= 256
    assert first.labels is None
    assert first.sha256 == again.sha256
    shapes = {np.asarray(first.images[i]).shape for i in range(len(first))}
    assert all(height == width >= 100 and channels == 3 for height, width, channels in shapes)
    assert len({first.images[i].tobytes() for i in range(len(first))}) == len(first)


def test_digits_are_split_once_and_stratified():
    sets = {split: data.load("digits", DIGITS, split) for split in Split}
    assert {split: len(found) for split, found in sets.items()} == {Split.train: 1297, Split.test: 500}
    grey, targets = load_digits(return_X_y=True)
    whole = sorted((np.rint(x * 255 / 16).astype(np.uint8).tobytes(), y) for x, y in zip(grey, targets, strict=True))
    parts = [(found.images[i][..., 0].tobytes(), found.labels[i]) for found in sets.values() for i in range(len(found))]
    assert sorted(parts) == whole  # disjoint, and nothing is lost
    shares = np.bincount(targets) * 500 / 1797
    assert np.abs(np.bincount(sets[Split.test].labels) - shares).max() < 1


def test_folder_and_tars_agree(tree, tmp_path):
    plain = load(tree)
    assert plain.classes == ["cat", "dog"]
    assert plain.labels.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(stacked(plain), np.stack([np.asarray(picture(i)) for i in range(8)]))
    for name, mode, inside in (("a.tar", "w", "."), ("b.tar.gz", "w:gz", "deep/set"), ("c.tar", "w", "")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(tree, inside)
        found = load(tmp_path / name)
        assert (found.sha256, found.classes) == (plain.sha256, plain.classes)
        assert np.array_equal(found.labels, plain.labels)
        assert np.array_equal(stacked(found), stacked(plain))
        assert load(tmp_path / name, 3).sha256 == load(tree, 3).sha256


def test_sha256_sees_pixels_labels_and_order(tree):
    seen = {load(tree).sha256}

    def changed():
        before = len(seen)
        seen.add(load(tree).sha256)
        return len(seen) == before + 1

    pixels = np.asarray(picture(0)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(tree / "cat" / "0.png")
    assert changed()
    (tree / "cat" / "3.png").rename(tree / "dog" / "3.png")  # the same order, another label
    assert changed()
    (tree / "cat" / "0.png").rename(tree / "cat" / "9.png")  # the same labels, another order
    assert changed()
    assert load(tree).sha256 in seen
    assert load(tree, labels=False).sha256 not in seen


def test_sha256_of_arrays_sees_order_and_shape():
    a = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(1, 2, 4, 3)

    def sha256(images, labels):
        return data._sha256(data._fingerprints(images), labels)

    one, other = sha256(a, None), sha256(a.reshape(1, 4, 2, 3), None)
    assert len({one, other, sha256(a, np.zeros(1, np.int64))}) == 3
    assert sha256(np.concatenate([a, a + 1]), None) != sha256(np.concatenate([a + 1, a]), None)


def test_subset_is_fixed_nested_and_alone_decides_the_sha256(tree):
    def names(dataset):
        return [Path(name).name for name in dataset.images.names]

    few = load(tree, 3)
    assert names(few) == names(load(tree, 3)) == names(load(tree, 5))[:3]
    assert len(load(tree, 99)) == 8
    assert load(tree, 99).sha256 == load(tree).sha256
    for index, label in zip(names(few), few.labels, strict=True):
        assert label == int(index[0]) // 4
    unread = next(path for path in tree.rglob("*.png") if path.name not in names(few))
    unread.write_bytes(b"broken")
    assert load(tree, 3).sha256 == few.sha256
    with pytest.raises(UserError, match=unread.name):
        load(tree)


def test_subset_depends_on_name_split_and_total():
    def rows(name, split):
        found = data.load(name, PHOTOS, split, 20)
        return [hashlib.sha256(found.images[i].tobytes()).hexdigest() for i in range(20)]

    assert rows("photos", Split.test) == rows("photos", Split.test)
    assert rows("photos", Split.test) != rows("photos", Split.train)
    assert rows("photos", Split.test) != rows("other", Split.test)
    # The stream itself: were it another one day, stored results would silently speak of other images.
    assert data.load("digits", DIGITS, Split.test, 8).labels.tolist() == [6, 7, 1, 6, 9, 2, 6, 0]


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = ""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    return info, io.BytesIO(content)


@pytest.mark.parametrize(
    "hostile",
    [
        member("../evil.png"),
        member("cat/../../evil.png"),
        member("/etc/evil.png"),
        member("cat/evil.png", tarfile.SYMTYPE, link="/etc/passwd"),
        member("cat/evil.png", tarfile.LNKTYPE, link="cat/0.png"),
        member("cat/evil.png", tarfile.CHRTYPE),
    ],
    ids=["parent", "hidden parent", "absolute", "symbolic link", "hard link", "device"],
)
def test_hostile_members_are_refused(tree, tmp_path, hostile):
    path = tmp_path / "hostile.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, "")
        tar.addfile(*hostile)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"hostile\.tar\.gz.*evil\.png.*refused"):
        load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_image_set_is_named(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar.gz").write_bytes(b"\x1f\x8b not a tar")
    stray = tmp_path / "stray"
    (stray / "cat").mkdir(parents=True)
    picture(0).save(stray / "cat" / "0.png")
    picture(1).save(stray / "loose.png")
    for path, message in (
        (tmp_path / "nowhere", "no such folder or tar"),
        (tmp_path / "empty", "no images"),
        (tmp_path / "bad.tar.gz", r"bad\.tar\.gz"),
        (stray, r"loose\.png"),
    ):
        with pytest.raises(UserError, match=message):
            load(path)
    with pytest.raises(UserError, match=r"conf/data/set\.yaml: train"):
        data.load("set", folder(tree), Split.train)


def test_unreadable_images_are_named(tree):
    whole = tree / "dog" / "7.png"
    content = whole.read_bytes()
    whole.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"dog/7\.png"):
        load(tree)
    whole.write_bytes(content[: len(content) // 2])  # its header is whole
    dataset = load(tree)
    with pytest.raises(UserError, match=r"dog/7\.png.*truncated"):
        dataset.images[7]
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(whole)
    with pytest.raises(UserError, match=r"dog/7\.png.*8 bits"):
        load(tree).images[7]


def test_images_without_labels(tree):
    flat = load(tree / "cat")
    assert (len(flat), flat.labels, flat.classes) == (4, None, [])
    assert load(tree, labels=False).labels is None


def test_pixels_are_those_of_timm():
    from timm.data.transforms_factory import transforms_imagenet_eval

    for seed, (width, height) in enumerate([(40, 40), (61, 40), (33, 70), (8, 8)]):
        image = picture(seed, width, height)
        for size in (32, 33):
            for crop_pct in (1.0, 0.875, 0.9):
                for filter in ("bilinear", "bicubic", "nearest"):
                    timm = transforms_imagenet_eval(size, crop_pct, interpolation=filter, normalize=False)
                    ours = preprocessing.pixels(image, size, filter, crop_pct)
                    assert np.array_equal(ours, timm(image)), (width, height, size, crop_pct, filter)
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        preprocessing.pixels(image, 32, "bicubc")


def test_batches_are_the_images_in_order(tree):
    import torch

    dataset = load(tree)
    parts = list(preprocessing.batches(dataset, 16, 3))
    assert [len(x) for x, _ in parts] == [3, 3, 2]
    x, y = next(preprocessing.batches(dataset, 16, len(dataset)))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(torch.cat([x for x, _ in parts]), x)
    assert torch.equal(torch.cat([y for _, y in parts]), y)
    expected = np.stack([preprocessing.pixels(dataset.images[i], 16) for i in range(8)])
    assert torch.equal((x * 255).round().byte(), torch.from_numpy(expected))
    assert next(preprocessing.batches(load(tree, labels=False), 16, 3))[1] is None


def through_timm(path, name="", **keys):
    conf = schema.Data(kind=DataKind.timm, name=name, root=str(path), test="test", **keys)
    return data.load("set", conf, Split.test)


@pytest.mark.parametrize("name", ["", "torch/image_folder"])
def test_timm_data_sets(tree, name):
    found, ours = through_timm(tree, name), load(tree)
    assert found.classes == ours.classes
    assert np.array_equal(found.labels, ours.labels)
    assert np.array_equal(stacked(found), stacked(ours))


def test_timm_neighbour_does_not_replace_an_unreadable_image(tree):
    (tree / "dog" / "7.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="image 7"):
        through_timm(tree)


def test_timm_downloads_a_data_set_that_is_not_there(tmp_path, monkeypatch):
    """torchvision's CIFAR-10, of three images, from a server on the loopback."""
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (3, 3 * 32 * 32), np.uint8)
    files = {"test_batch": {"data": pixels, "labels": [2, 0, 1]}, "batches.meta": {"label_names": list("abc")}}
    source = tmp_path / "server" / CIFAR10.base_folder
    source.mkdir(parents=True)
    for name, content in files.items():
        (source / name).write_bytes(pickle.dumps(content))
    with tarfile.open(archive := source.parent / CIFAR10.filename, "w:gz") as tar:
        tar.add(source, CIFAR10.base_folder)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in [archive, *source.iterdir()]}
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5[archive.name])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=archive.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        with pytest.raises(UserError, match="not found or corrupted"):
            through_timm(tmp_path / "root", "torch/cifar10")
        found = through_timm(tmp_path / "root", "torch/cifar10", download=True)
        server.shutdown()
    assert found.labels.tolist() == [2, 0, 1]
    assert found.classes == ["a", "b", "c"]
    assert np.array_equal(stacked(found), pixels.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
    with pytest.raises(UserError, match="download"):
        schema.Data(kind=DataKind.digits, download=True)


def test_timm_errors_name_the_data_set(tmp_path):
    for name in ("torch/nonsense", "torch/cifar10", "nonsense/x"):
        with pytest.raises(UserError, match=rf"conf/data/set\.yaml.*{name}"):
            through_timm(tmp_path, name)


def test_timm_data_sets_that_can_only_be_iterated(monkeypatch):
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __iter__(self):
            return ((picture(i), i % 3 - offset) for i in range(6))

    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", lambda *_, **__: Stream())
    offset = 0
    found = through_timm("nowhere", "wds/stream")
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.classes == ["0", "1", "2"]
    assert np.array_equal(stacked(found), np.stack([np.asarray(picture(i)) for i in range(6)]))
    offset = 1
    with pytest.raises(UserError, match="labels: false"):
        through_timm("nowhere", "wds/stream")
    assert through_timm("nowhere", "wds/stream", labels=False).labels is None


@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no CIFAR-10 at {CIFAR}")
def test_cifar10_from_its_tar():
    conf = folder(CIFAR / "test.tar.gz")
    dataset = data.load("cifar10", conf, Split.test)
    assert len(dataset) == 10_000
    assert np.bincount(dataset.labels).tolist() == [1000] * 10
    assert dataset.classes[0] == "airplane"
    few = data.load("cifar10", conf, Split.test, 32)
    assert next(preprocessing.batches(few, 32, len(few)))[0].shape == (32, 3, 32, 32)
    assert len(set(few.labels.tolist())) > 3


def test_several_counts_are_read_once_and_each_as_alone(tree, tmp_path, monkeypatch):
    path, counts = tmp_path / "images.tar.gz", [3, None, 1, 2]
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, "")
    alone = [load(path, count) for count in counts]
    reads = []
    whole = data.imagefiles.read
    monkeypatch.setattr(data.imagefiles, "read", lambda *args: reads.append(args) or whole(*args))
    for one, each in zip(alone, data.load_each("set", folder(path), Split.test, counts), strict=True):
        assert (each.sha256, each.classes, each.labels.tolist()) == (one.sha256, one.classes, one.labels.tolist())
        assert np.array_equal(stacked(each), stacked(one))
    assert len(reads) == 1
    for name, conf in (("photos", PHOTOS), ("digits", DIGITS)):
        for count, each in zip([7, 20], data.load_each(name, conf, Split.test, [7, 20]), strict=True):
            one = data.load(name, conf, Split.test, count)
            assert each.sha256 == one.sha256
            assert (each.clusters is None) == (one.clusters is None)
            assert each.clusters is None or each.clusters.tolist() == one.clusters.tolist()
