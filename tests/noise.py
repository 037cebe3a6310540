"""The smallest images that a network learns on: two classes of noise, bright above or bright on the left."""

import numpy as np
from PIL import Image

from eqbench import schema


def folder(root, training):
    """A folder dataset of 8 px images: this many of each class to train on, and 8 to test on."""
    random = np.random.default_rng(0)
    for split, count in (("train", training), ("test", 8)):
        for label, name in enumerate(("above", "left")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = random.integers(0, 120, (8, 8, 3))
                view = image if label == 0 else image.transpose(1, 0, 2)
                view[:4] += 120
                Image.fromarray(image.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return schema.Data(kind=schema.DataKind.folder, train=str(root / "train"), test=str(root / "test"))
