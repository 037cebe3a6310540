"""timm models as seeded initialisations, as folders on disk, and as networks on images in [0, 1]."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.models import (
    get_arch_pretrained_cfgs,
    list_models,
    resolve_model_input_args,
    save_for_hf,
    split_model_name_tag,
)
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from eqbench import schema, weights
from eqbench.combined import Combined, build
from eqbench.errors import Unsupported, UserError, one_line, unknown

# What timm, torch and safetensors raise for arguments, configurations or files that do not fit.
MISFITS = (AssertionError, AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
CONFIG = "config.json"  # of a state's folder
PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bicubic", "crop_pct": 1.0}  # no pretrained_cfg


def device() -> torch.device:
    """The device that everything runs on: the GPU if there is one.

    Not every cluster hides from a job the GPUs that it did not ask for: without one of its own, it leaves them alone.
    """
    given = "SLURM_JOB_ID" not in os.environ or "CUDA_VISIBLE_DEVICES" in os.environ
    return torch.device("cuda" if given and torch.cuda.is_available() else "cpu")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers on the CPU are a function of the seed inside, and undisturbed outside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def create(conf: schema.Model, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Build `conf.timm` without pretrained weights, with its arguments and image size.

    Args:
        num_classes: classes of the head; None: as `conf.args` or else the architecture says.
        options: more keyword arguments of `timm.create_model`.

    Raises:
        UserError: timm knows no such architecture or tag, or refuses the arguments.
    """
    check_name(conf.timm)
    args = {"pretrained": False} | conf.args | ({} if num_classes is None else {"num_classes": num_classes}) | options
    size = conf.image_size
    try:
        if size is not None:
            fixed = resolve_model_input_args(conf.timm, args={"img_size": size}, **conf.args)
            args |= {"img_size": fixed["img_size"]} if "img_size" in fixed else {}
        module: Any = timm.create_model(conf.timm, **args)
    except MISFITS as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in sorted(args.items()) if key != "pretrained_cfg_overlay")
        reason = f"there is no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"timm cannot build '{conf.timm}' ({shown or 'no arguments'}): {reason}") from None
    if size is not None:
        cfg = module.pretrained_cfg
        kept = {key: value for key, value in cfg.items() if key not in ("test_input_size", "pool_size")}
        module.pretrained_cfg = kept | {"input_size": (cfg["input_size"][0], size, size), "pool_size": None}
    return cast(nn.Module, module)


def check_name(name: str) -> None:
    """Refuse a timm name that is in no registry, with the nearest spelling; `local-dir:` names pass.

    >>> check_name("test_resne")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    eqbench.errors.UserError: unknown timm architecture 'test_resne': did you mean 'test_resnet'? Allowed: ...
    """
    prefix, colon, _ = name.partition(":")
    if prefix == "local-dir" and colon:
        return
    if colon:
        raise UserError(f"timm: '{name}' is no architecture: hf-hub:org/name goes with source hub alone")
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        raise unknown("timm architecture", architecture, list_models())
    tags = [split_model_name_tag(known)[1] for known in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise unknown(f"pretrained tag of '{architecture}'", tag, tags)


def init_state(conf: schema.Model, num_classes: int | None, seed: int) -> nn.Module:
    """A random initialisation that is a function of the seed alone; the caller's random state stays as it was."""
    with seeded(seed):
        return create(conf, num_classes)


class Network(nn.Module):
    """A module that takes normalised images, as a function of images in [0, 1]; in eval mode.

    Attributes:
        module: what was wrapped.
        size: the side of its images, in pixels.
        interpolation: how its images were resized, e.g. `bicubic`.
        crop_pct: the share of the resized image that the centre crop keeps.
        mean, std: buffers (3, 1, 1) of the normalisation, in the order R, G, B.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
    ) -> None:
        """What is not given is read from the module's `pretrained_cfg`; a module without one needs a `size`."""
        super().__init__()
        known: dict[str, Any] = {"image_size": size} | PLAIN
        known |= input_facts(module) if hasattr(module, "pretrained_cfg") else {}
        if known["image_size"] is None:
            raise ValueError(f"{type(module).__name__} has no pretrained_cfg: pass the size of its images")
        self.module = module
        self.size: int = size or known["image_size"]
        self.interpolation: str = interpolation or known["interpolation"]
        self.crop_pct: float = crop_pct or known["crop_pct"]
        for name, given in (("mean", mean), ("std", std)):
            values = torch.tensor(known[name] if given is None else given, dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1].

        Raises:
            Unsupported: the module gives anything else, so there are no class scores to compare.
        """
        logits = self.module((images - self.mean) / self.std)
        name = type(self.module).__name__
        if not isinstance(logits, Tensor):
            raise Unsupported(f"{name}: expected logits (B, classes), got a {type(logits).__name__}")
        if logits.ndim != 2 or len(logits) != len(images):
            raise Unsupported(f"{name}: expected logits ({len(images)}, classes), got shape {tuple(logits.shape)}")
        if getattr(self.module, "num_classes", None) == 0:
            raise Unsupported(f"{name}: has no classifier (num_classes is 0), only features {tuple(logits.shape)}")
        return logits


@torch.no_grad()
def check_size(network: Network, model: str) -> None:
    """Refuse an image size that the architecture cannot take, before anything is written.

    Raises:
        UserError: names the model and the size.
    """
    size = network.size
    try:
        network(torch.zeros(2, 3, size, size, device=network.mean.device))
    except MISFITS as error:
        raise UserError(f"conf/model/{model}.yaml: image_size: {size} px does not fit: {one_line(error)}") from None


def input_facts(module: nn.Module) -> dict[str, Any]:
    """What a module expects of its images: image_size, mean, std, interpolation, crop_pct.

    Raises:
        UserError: its images are not square.
    """
    cfg = resolve_model_data_config(module)
    *_, height, width = cfg["input_size"]
    if height != width:
        raise UserError(
            f"{type(module).__name__} takes images of {height} x {width} px: only square ones can be turned"
        )
    facts = {"image_size": int(width), "mean": [float(x) for x in cfg["mean"]], "std": [float(x) for x in cfg["std"]]}
    return facts | {"interpolation": str(cfg["interpolation"]), "crop_pct": float(cfg["crop_pct"])}


def facts(module: nn.Module) -> dict[str, Any]:
    """What a card says of an architecture (a Network is looked into): family, parameters, classes, input."""
    inner: Any = module.module if isinstance(module, Network) else module
    first = inner.first if isinstance(inner, Combined) else inner
    return {
        "family": type(first).__module__.rsplit(".", 1)[-1],
        "architecture": inner.pretrained_cfg["architecture"],
        "parameters": sum(parameter.numel() for parameter in inner.parameters()),
        "num_classes": int(inner.num_classes),
    } | input_facts(inner)


def save_state(module: nn.Module, folder: Path) -> str:
    """Write a timm model as a `local-dir:` folder, whole or not at all; one that is there is replaced.

    Of a `Combined` one, model.safetensors holds all weights, and config.json says what timm says of the first network, and
    under `combined` how they are put together.

    Returns:
        The sha256 of its model.safetensors: the same weights are the same bytes.
    """
    inner = module.module if isinstance(module, Network) else module
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*"):  # left by a process that was killed here
        shutil.rmtree(stale)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        new, old = scratch / "new", scratch / "old"
        own_copies = inner.register_state_dict_post_hook(_untie)
        try:
            if isinstance(inner, Combined):
                new.mkdir()
                save_config_for_hf(inner.first, str(new / CONFIG))
                save_file(inner.state_dict(), new / weights.FILE)
                config = json.loads((new / CONFIG).read_text()) | {"combined": inner.recipe}
                (new / CONFIG).write_text(json.dumps(config, indent=2))
            else:
                save_for_hf(inner, str(new), safe_serialization=True)
        except SafetensorError as error:  # of a disk, too
            raise UserError(f"{folder}: cannot be written: {one_line(error)}") from None
        finally:
            own_copies.remove()
        for path in new.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sha256 = weights.sha256_file(new / weights.FILE)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        shutil.rmtree(scratch)
    return sha256


def _untie(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Give each entry of a state dict its own memory: safetensors refuses weights that modules share (CoaT's do)."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def load_state(folder: Path) -> Network:
    """The network of a folder that `save_state` wrote: no network access, outputs bit-identical to what was saved.

    Raises:
        UserError: a file is missing or damaged; names it.
    """
    for name in (CONFIG, weights.FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file: delete {folder.parent} and {weights.AGAIN}")
    try:
        with seeded(0):
            recipe = json.loads((folder / CONFIG).read_text()).get("combined")
            count = 1 if recipe is None else recipe.get("members", 1)
            parts = [timm.create_model(f"local-dir:{folder}", pretrained=recipe is None) for _ in range(count)]
            module: nn.Module = parts[0] if recipe is None else build(recipe, parts)
            if recipe is not None:
                module.load_state_dict(load_file(folder / weights.FILE))
    except MISFITS as error:
        raise UserError(
            f"{folder / weights.FILE}: cannot be loaded ({one_line(error)}): delete {folder.parent} and {weights.AGAIN}"
        ) from None
    return Network(module)
