"""Files of the model hub: found, downloaded with resumption, checked against the hash that the hub announces."""

import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # of httpx, old and new
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from eqbench.errors import UserError, one_line
from eqbench.weights import sha256_file

TIMEOUT = 10  # seconds that the hub may take to answer
SHA256 = re.compile("[0-9a-f]{64}")


class Unreachable(Exception):
    """There is no network, or it broke off: the same call may succeed elsewhere or later."""


@dataclass(frozen=True)
class Repository:
    """One commit of a repository of the hub."""

    name: str  # org/name
    commit: str
    files: frozenset[str]
    licence: str | None = None

    def first(self, names: Iterable[str]) -> str:
        """The first of these files that the repository has.

        Raises:
            UserError: it has none of them.
        """
        names = list(names)
        for name in names:
            if name in self.files:
                return name
        raise UserError(f"hub repository '{self.name}' at {self.commit}: has no {' or '.join(names)}")


def repository(name: str, names: Iterable[str]) -> Repository:
    """The present commit of `org/name` or `org/name@revision`; without network, the commit in the local cache.

    Args:
        names: files that may be wanted; where the cache holds one of them, it holds the commit.

    Raises:
        UserError: there is no such repository or revision, or it wants a login.
        Unreachable: no network, and nothing cached.
    """
    repo, _, revision = name.partition("@")
    try:
        with _transport(f"hub repository '{name}' on {constants.ENDPOINT}"):
            info = HfApi().model_info(repo, revision=revision or None, timeout=TIMEOUT)
    except Unreachable:
        cached = (try_to_load_from_cache(repo, file, revision=revision or None) for file in names)
        found = next((path for path in cached if isinstance(path, str)), None)
        if found is None:
            raise
        folder = Path(found).parent
        return Repository(repo, folder.name, frozenset(path.name for path in folder.iterdir()))
    licence = info.card_data.get("license") if info.card_data else None
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    return Repository(repo, info.sha or revision, files, licence if isinstance(licence, str) else None)


def download(source: Repository, name: str, folder: Path) -> Path:
    """`folder/name`, whole and checked; a download that broke off in this folder goes on where it stopped.

    Raises:
        UserError: the file is not what the hub announces.
        Unreachable: the network is gone; what has arrived is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    cached = try_to_load_from_cache(source.name, name, revision=source.commit)
    if isinstance(cached, str):
        blob = Path(cached).resolve()
        _check(blob, blob.name, blob)
        target.unlink(missing_ok=True)
        target.symlink_to(blob)
        return target
    url = hf_hub_url(source.name, name, revision=source.commit)
    with _transport(url):
        announced = get_hf_file_metadata(url, timeout=TIMEOUT)
    etag = announced.etag or ""
    if target.is_file() and SHA256.fullmatch(etag) and sha256_file(target) == etag:
        return target
    partial = folder / f"{name}.{re.sub('[^0-9A-Za-z]', '', etag)}.part"
    _get(url, partial, announced.size, resume=bool(SHA256.fullmatch(etag)), headers=build_hf_headers())
    _check(partial, etag, target)
    os.replace(partial, target)
    return target


def download_url(url: str, folder: Path) -> Path:
    """A file from outside the hub, checked against the start of its hash where its name ends with one (`-0aa007d2`)."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rsplit("/", 1)[-1]
    partial = target.with_name(f"{target.name}.part")
    with _transport(url):
        answer = get_session().head(url, follow_redirects=True, timeout=TIMEOUT)
        hf_raise_for_status(answer)
    _get(url, partial, None, resume=False, headers={})
    hashed = re.search(r"-([0-9a-f]{8,64})$", target.stem)
    if hashed:
        _check(partial, hashed[1], target)
    os.replace(partial, target)
    return target


def _get(url: str, partial: Path, size: int | None, resume: bool, headers: dict[str, str]) -> None:
    have = partial.stat().st_size if resume and partial.exists() else 0
    if size is not None and have > size:
        have = 0
    with open(partial, "ab" if have else "wb") as file, _transport(url):
        http_get(
            url,
            file,
            resume_size=have,
            expected_size=size,
            headers=headers | {"Accept-Encoding": "identity"},  # a compressed answer cannot be resumed
            displayed_filename=partial.name.split(".", 1)[0],
        )


def _check(path: Path, announced: str, target: Path) -> None:
    """Compare a file with the (start of the) sha256 announced for it; a git hash (40 digits) says nothing here."""
    if not re.fullmatch("[0-9a-f]{8,64}", announced) or len(announced) == 40:
        return
    found = sha256_file(path)
    if not found.startswith(announced):
        if path != target:  # what is in the cache of huggingface_hub is not ours to delete
            path.unlink()
        remedy = "delete it and fetch again" if path == target else "nothing was kept, fetch it again"
        raise UserError(f"{target}: expected sha256 {announced}, found {found}: {remedy}")


@contextmanager
def _transport(what: str) -> Iterator[None]:
    """Say in one line what the hub or the network answered."""
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{what}: accept its terms on its page, then log in (HF_TOKEN)") from None
    except RepositoryNotFoundError:
        raise UserError(f"{what}: does not exist, or is private (then log in: HF_TOKEN)") from None
    except HFValidationError as error:
        raise UserError(f"{what}: {one_line(error)}") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            raise UserError(f"{what}: does not exist: {one_line(error)}") from None
        raise Unreachable(f"{what}: {one_line(error)}") from None
    except (TransportError, ConnectionError, TimeoutError, socket.gaierror) as error:
        raise Unreachable(f"{what}: cannot be reached: {one_line(error)}") from None
