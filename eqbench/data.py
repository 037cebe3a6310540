"""Image sets: photographs, digits, folders and tars of images, timm data sets (no torch)."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eqbench import imagefiles, schema
from eqbench.errors import UserError
from eqbench.imagefiles import Choose, named, rgb

PHOTOS = [("skimage", f"data/{n}") for n in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
PHOTOS += [("skimage", "data/motorcycle_left.png")]
PHOTOS += [("sklearn", f"datasets/images/{n}") for n in ("china.jpg", "flower.jpg")]
WINDOWS = (1.0, 0.75, 0.5, 0.375)  # sides of a photograph's crops, in units of its shorter side


class Images(Protocol):
    """RGB images, each a PIL image or a uint8 array (height, width, 3), decoded when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


# The chosen images, their labels, the names of all classes, and which images depend on each other (same number).
Read = tuple[Images, list[int] | None, list[str]] | tuple[Images, list[int] | None, list[str], list[int]]


@dataclass(frozen=True)
class Dataset:
    """A set of images in a fixed order.

    Attributes:
        name: the id of conf/data.
        images: RGB, decoded lazily unless they lie in memory anyway.
        labels: int64 (n,), indices into `classes`; None: unlabelled.
        clusters: int64 (n,), the same number for images that depend on each other; None: all independent.
        sha256: of the labels and of each image's file (or, where there is no file, its pixels), in order.
    """

    name: str
    images: Images
    labels: NDArray[np.int64] | None
    classes: list[str]
    sha256: str
    clusters: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)


def load(name: str, conf: schema.Data, split: schema.Split, images: int | None = None) -> Dataset:
    """The images of a data set, or a fixed random subset of them.

    Args:
        name: the id of conf/data.
        images: how many; which ones depends on (name, split, how many there are) alone, so that every model sees the
            same, and more images contain fewer. None, or more than there are: all, in the data set's own order.

    Raises:
        UserError: the data set does not exist, is empty, or holds a file that is not an image; names the file.
    """
    return load_each(name, conf, split, [images])[0]


def load_each(name: str, conf: schema.Data, split: schema.Split, counts: Sequence[int | None]) -> list[Dataset]:
    """A data set for each count of images, as `load` gives it; the files are read once, for the largest.

    Raises:
        UserError: as `load`.
    """
    rows: list[list[int]] = []

    def choose(total: int) -> list[int]:
        seed = hashlib.sha256(f"{name}/{split}/{total}".encode()).digest()[:4]
        # RandomState, because numpy keeps its stream the same in every version.
        order = np.random.RandomState(int.from_bytes(seed)).permutation(total).tolist()
        rows.extend(list(range(total)) if n is None or n >= total else order[:n] for n in counts)
        return max(rows, key=len)

    found, targets, classes, *dependent = _READERS[conf.kind](name, conf, split, choose)
    labels = np.asarray(targets, np.int64) if targets is not None and conf.labels else None
    if labels is not None and (labels < 0).any():
        raise UserError(f"conf/data/{name}.yaml: split '{split}' holds negative labels: set labels: false")
    clusters = np.asarray(dependent[0], np.int64) if dependent else None
    prints = list(_fingerprints(found))

    def subset(places: list[int]) -> Dataset:
        images = found if len(places) == len(found) else _take(found, places)
        own, dependent = (None if of is None else of[places] for of in (labels, clusters))
        sha256 = _sha256((prints[place] for place in places), own)
        return Dataset(name, images, own, classes if own is not None else [], sha256, dependent)

    largest = max(rows, key=len)
    where = {row: place for place, row in enumerate(largest)}
    return [subset([where[row] for row in chosen]) for chosen in rows]


def photos(name: str, conf: schema.Data, split: schema.Split, choose: Choose) -> Read:
    """Square crops of seven photographs that scikit-image and scikit-learn ship; unlabelled, the same in each split.

    Windows of each side in `WINDOWS` lie on a grid whose step is about half the side. Crops of one photograph overlap
    and depend on each other: they are one cluster, drawn together or not at all when intervals are bootstrapped.
    """
    crops: list[Any] = []
    owners: list[int] = []
    for photograph, (package, file) in enumerate(PHOTOS):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent / file
        with named(str(path)), Image.open(path) as image:
            photo = np.asarray(rgb(image))
        height, width = photo.shape[:2]
        for share in WINDOWS:
            side = int(share * min(height, width))
            crops += [photo[y : y + side, x : x + side] for y in _grid(height, side) for x in _grid(width, side)]
        owners += [photograph] * (len(crops) - len(owners))
    chosen = choose(len(crops))
    return [crops[i] for i in chosen], None, [], [owners[i] for i in chosen]


def _grid(length: int, side: int) -> list[int]:
    steps = 1 + round((length - side) / (side / 2))
    return [round(i * (length - side) / max(steps - 1, 1)) for i in range(steps)]


def digits(name: str, conf: schema.Data, split: schema.Split, choose: Choose) -> Read:
    """scikit-learn's 1,797 grey 8 x 8 digits as RGB, split once, stratified: 1,297 to train on, 500 to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey, targets = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(grey)), test_size=500, stratify=targets, random_state=0)
    rows = np.sort(parts[split is schema.Split.test])
    rows = rows[choose(len(rows))]
    pixels = np.rint(grey[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return np.repeat(pixels, 3, axis=3), targets[rows].tolist(), [str(digit) for digit in range(10)]


def folder(name: str, conf: schema.Data, split: schema.Split, choose: Choose) -> Read:
    """A folder of class folders, or a tar of one; images that lie in no class folder are unlabelled."""
    return imagefiles.read(Path(_split_name(name, conf, split)), choose)


class _Indexed:
    """Chosen images of a map-style data set of (image, label) pairs."""

    def __init__(self, name: str, pairs: Any, rows: list[int]) -> None:
        self.name, self.pairs, self.rows = name, pairs, rows

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, index: int) -> tuple[Image.Image, int]:
        with named(f"{self.name}: image {self.rows[index]}"):
            image, label = self.pairs[self.rows[index]]
            return rgb(image), int(label)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pair(index)[0]

    def take(self, places: list[int]) -> "_Indexed":
        return _Indexed(self.name, self.pairs, [self.rows[i] for i in places])


def timm(name: str, conf: schema.Data, split: schema.Split, choose: Choose) -> Read:
    """Any data set of timm.data.create_dataset; of one that can only be iterated, the chosen images lie in memory."""
    from timm.data.dataset_factory import create_dataset
    from torch.utils.data import IterableDataset

    part = _split_name(name, conf, split)
    root: Any = conf.root
    where = f"conf/data/{name}.yaml: timm data set '{conf.name}', split '{part}'"
    with named(where):
        source = create_dataset(conf.name or "", root=root, split=part, is_training=False, download=conf.download)
        names = getattr(source, "classes", None) or getattr(getattr(source, "reader", None), "class_to_idx", None)
        if isinstance(source, IterableDataset):
            rows = choose(sum(1 for _ in source))
            wanted = dict.fromkeys(rows)
            kept = {i: (np.asarray(rgb(x)), int(label)) for i, (x, label) in enumerate(source) if i in wanted}
            images: Images = [kept[i][0] for i in rows]
            labels = [kept[i][1] for i in rows]
        else:
            source._max_retries = 1  # timm would put the next image in the place of one that it cannot read
            images = _Indexed(where, source, choose(len(source)))
            labels = [images.pair(i)[1] for i in range(len(images))]
    if not labels:
        raise UserError(f"{where}: holds no images")
    return images, labels, [str(n) for n in names or range(max(labels) + 1)]


_READERS: dict[schema.DataKind, Callable[[str, schema.Data, schema.Split, Choose], Read]] = {
    schema.DataKind.photos: photos,
    schema.DataKind.digits: digits,
    schema.DataKind.folder: folder,
    schema.DataKind.timm: timm,
}


def _split_name(name: str, conf: schema.Data, split: schema.Split) -> str:
    value = {schema.Split.train: conf.train, schema.Split.test: conf.test}[split]
    if value is None:
        raise UserError(f"conf/data/{name}.yaml: {split}: needed here, and missing")
    return value


def _take(images: Images, places: list[int]) -> Images:
    """The images at these places, in this order; files stay undecoded."""
    return images.take(places) if isinstance(images, imagefiles.Files | _Indexed) else [images[i] for i in places]


def _sha256(prints: Iterable[bytes], labels: NDArray[np.int64] | None) -> str:
    total = hashlib.sha256(b"unlabelled" if labels is None else labels.tobytes())
    for one in prints:
        total.update(one)
    return total.hexdigest()


def _fingerprints(images: Images) -> Iterator[bytes]:
    """What each image is told by: its size and the sha256 of its file (or, where there is no file, of its pixels)."""
    for i in range(len(images)):
        if isinstance(images, imagefiles.Files):
            content = images.check(i)
            shape: tuple[int, ...] = (len(content),)
        else:
            array = np.asarray(images[i])
            content, shape = array.tobytes(), array.shape
        yield f"{shape}".encode() + hashlib.sha256(content).digest()
