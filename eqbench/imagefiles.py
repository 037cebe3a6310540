"""Image files in folders and tars: found, read safely, decoded when asked for (no torch)."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from eqbench.errors import UserError, one_line

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Choose = Callable[[int], list[int]]  # how many images there are -> which are read, in which order


class Files:
    """Image files on disk, or the bytes of such files; `names` as they are shown to the user."""

    def __init__(self, names: list[str], files: list[Path] | list[bytes]) -> None:
        self.names, self.files = names, files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        file = self.files[index]
        with named(self.names[index]):
            return file if isinstance(file, bytes) else file.read_bytes()

    def check(self, index: int) -> bytes:
        """The bytes of a file whose header is that of an image."""
        content = self.read(index)
        with named(self.names[index]), Image.open(io.BytesIO(content)):
            return content

    def take(self, places: list[int]) -> "Files":
        """The files at these places, in this order."""
        files: list[Any] = [self.files[i] for i in places]
        return Files([self.names[i] for i in places], files)

    def __getitem__(self, index: int) -> Image.Image:
        content = self.read(index)
        with named(self.names[index]), Image.open(io.BytesIO(content)) as image:
            return rgb(image)


def read(path: Path, choose: Choose) -> tuple["Files", list[int] | None, list[str]]:
    """A folder of class folders, or a tar of one; images that lie in no class folder are unlabelled.

    Files whose suffix is not in `SUFFIXES`, and hidden ones, are passed over. The order is that of the sorted paths.
    A tar's chosen files are held in memory, as they are; nothing is unpacked to disk.

    Returns:
        The chosen files, their labels (None: unlabelled), and the names of all classes.

    Raises:
        UserError: there is no image; a tar's member is a link or points out of it; some images lie in no class folder.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or tar of images (working folder: {Path.cwd()})")
    if path.is_dir():
        found = {PurePosixPath(p.relative_to(path)): p for p in path.rglob("*") if p.is_file()}
        keys, labels, classes = _labelled(path, found, choose)
        return Files([str(found[k]) for k in keys], [found[k] for k in keys]), labels, classes
    with named(str(path)), tarfile.open(path) as tar:
        members = {PurePosixPath(m.name): m for m in map(_safe, tar.getmembers()) if m.isfile()}
        keys, labels, classes = _labelled(path, members, choose)
        contents = {}
        for key in sorted(keys, key=lambda k: members[k].offset):  # a compressed tar is only read forwards
            file = tar.extractfile(members[key])
            assert file is not None
            contents[key] = file.read()
    return Files([f"{path}: {key}" for key in keys], [contents[key] for key in keys]), labels, classes


def _safe(member: tarfile.TarInfo) -> tarfile.TarInfo:
    where = PurePosixPath(member.name)
    if where.is_absolute() or ".." in where.parts:
        raise UserError(f"member {member.name!r} points out of the tar: refused")
    if not (member.isfile() or member.isdir()):
        raise UserError(f"member {member.name!r} is neither a file nor a folder (a link?): refused")
    return member


def _labelled(
    root: Path, found: Iterable[PurePosixPath], choose: Choose
) -> tuple[list[PurePosixPath], list[int] | None, list[str]]:
    """The chosen image paths among those found, their labels and all classes: the folders that lie below `root`."""
    paths = sorted(p for p in found if p.suffix.lower() in SUFFIXES and not any(s[0] == "." for s in p.parts))
    if not paths:
        raise UserError(f"{root}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    level = 0  # a tar may hold one folder that holds the class folders
    while len({p.parts[level] for p in paths}) == 1 and all(len(p.parts) > level + 2 for p in paths):
        level += 1
    chosen = [paths[i] for i in choose(len(paths))]
    depths = {len(p.parts) > level + 1 for p in paths}
    if depths == {True, False}:
        stray = next(p for p in paths if len(p.parts) == level + 1)
        raise UserError(f"{root}: has both class folders and images outside them, e.g. {stray}")
    if depths == {False}:
        return chosen, None, []
    classes = sorted({p.parts[level] for p in paths})
    index = {label: i for i, label in enumerate(classes)}
    return chosen, [index[p.parts[level]] for p in chosen], classes


def rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, decoded.

    Raises:
        UserError: it holds more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):  # convert would clip the values to 8 bits
        raise UserError(f"holds more than 8 bits a channel (mode {image.mode}): convert it to 8-bit RGB first")
    return image.convert("RGB")


@contextmanager
def named(where: str) -> Iterator[None]:
    """Whatever goes wrong inside is about the file `where`: decoders of untrusted files raise anything."""
    try:
        yield
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from None
    except Exception as error:
        raise UserError(f"{where}: {one_line(error)}") from None
