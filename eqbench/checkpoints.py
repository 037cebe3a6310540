"""Weight files of other people: never run, checked, and put into a module by name or, failing that, by order."""

import re
from argparse import Namespace
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from timm.models import load_state_dict
from torch import Tensor, nn

from eqbench.errors import UserError, one_line
from eqbench.models import MISFITS
from eqbench.weights import sha256_file

COUNTER = "num_batches_tracked"  # of batch normalisation: not a weight, and absent from older checkpoints


def check_file(path: Path, sha256: str | None) -> str:
    """The sha256 of a weight file, which exists, is the expected one, is not cut short, and holds no code.

    Raises:
        UserError: it is none of that; says which, and what to do.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weight file (working folder: {Path.cwd()})")
    found = sha256_file(path)
    if sha256 not in (None, found):
        raise UserError(f"{path}: expected sha256 {sha256}, found {found}: correct the file, or `sha256` of the model")
    code: list[str] = []
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        else:
            with torch.serialization.safe_globals([Namespace]):  # plain data, in checkpoints of timm's train script
                if is_zipfile(path):
                    code = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
                else:  # the format of torch before 1.6
                    torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        code = re.findall(r"GLOBAL (\S+)", str(error))
        if not code:
            raise UserError(f"{path}: truncated, or not by torch.save (nothing in it was run): get it again") from None
    except (*MISFITS, EOFError) as error:
        raise UserError(f"{path}: truncated, or no weight file ({one_line(error)}): get it again") from None
    if code:
        raise UserError(f"{path}: holds code ({', '.join(code)}), which is never run: save its state_dict() alone")
    return found


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, a pickled state dict, or a training checkpoint that holds one.

    Raises:
        UserError: it cannot be read without running code, or is no state dict.
    """
    try:
        state = load_state_dict(str(path))
    except (*MISFITS, EOFError) as error:
        raise UserError(f"{path}: cannot be read as weights ({one_line(error)}): get it again") from None
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{path}: expected a state dict (names of tensors), found {type(value).__name__} under '{name}': "
                "save `model.state_dict()`"
            )
    return state


def assign(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copy a state dict into a module: by name if the names agree, else by order if count and every shape agree.

    The counters of batch normalisation may be absent. By order, no name may contradict the place that it takes, and
    a .safetensors file never qualifies: it keeps names sorted, not in the module's order.

    Raises:
        UserError: names the first tensor that disagrees, with both shapes.
    """
    own = module.state_dict()
    want = {name: value for name, value in own.items() if not name.endswith(COUNTER)}
    have = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    by_name = set(want) == set(have)
    if not by_name and path.suffix == ".safetensors":
        missing = next((name for name in want if name not in have), None)
        raise UserError(
            f"{path}: has no tensor '{missing}' {tuple(want[missing].shape)}, which {type(module).__name__} needs"
            if missing
            else f"{path}: tensor '{next(name for name in have if name not in want)}' is not in {type(module).__name__}"
        )
    leaves = {name.rsplit(".", 1)[-1] for name in want}
    filled = {}
    for (name, value), other in zip(want.items(), want if by_name else have, strict=False):
        found, leaf = have[other], other.rsplit(".", 1)[-1]
        contradicts = other != name and (other in want or (leaf in leaves and leaf != name.rsplit(".", 1)[-1]))
        if found.shape != value.shape or contradicts:
            raise UserError(
                f"{path}: tensor '{other}' has shape {tuple(found.shape)}, "
                f"where {type(module).__name__} expects '{name}' with shape {tuple(value.shape)}: "
                "if only the number of classes differs, set it in the model's `args: {num_classes: ...}`"
            )
        filled[name] = found
    if len(want) != len(have):
        more, fewer = (want, have) if len(want) > len(have) else (have, want)
        extra = list(more)[len(fewer)]
        side = type(module).__name__ if more is want else str(path)
        raise UserError(
            f"{path}: holds {len(have)} tensors, {type(module).__name__} {len(want)}: "
            f"only {side} has '{extra}' with shape {tuple(more[extra].shape)}"
        )
    counters = {name: state.get(name, value) for name, value in own.items() if name.endswith(COUNTER)}
    module.load_state_dict(filled | counters)


def check_finite(module: nn.Module, path: Path) -> None:
    """Refuse weights that are not numbers.

    Raises:
        UserError: names the first tensor with a NaN or an infinity.
    """
    for name, value in module.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: tensor '{name}' holds {int((~torch.isfinite(value)).sum())} values not finite")
