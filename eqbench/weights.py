"""Where weights lie on disk, the card that says what they are, and the check before they are used (no torch)."""

import hashlib
from pathlib import Path
from typing import Any

from eqbench import results
from eqbench.errors import Unsupported, UserError

FILE = "model.safetensors"  # the weight file of a state's folder
AGAIN = "fetch, train or derive it again"  # by which of the verbs, the model's source says


def state_dir(root: Path, model: str, seed: str, state: str) -> Path:
    """The folder of one state: a timm `local-dir:` folder."""
    return Path(root, model, seed, state)


def card_path(root: Path, model: str, seed: str) -> Path:
    """The card of a (model, seed). It is written last: where it exists, every state that it lists is complete."""
    return Path(root, model, seed, "card.json")


def sha256_file(path: Path | str) -> str:
    """The sha256 of a file, as 64 lower-case hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_card(root: Path, model: str, seed: str) -> dict[str, Any]:
    """The card of a (model, seed).

    Raises:
        UserError: there is none, or it cannot be read; says which file and what to run.
    """
    path = card_path(root, model, seed)
    remedy = f"run `python -m eqbench fetch model={model} seed={seed}`, or `train` if it is trained here, or `derive`"
    try:
        card = results.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so there are no weights of '{model}' {seed}: {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable card ({error}): delete it, then {remedy}") from None
    if not isinstance(card.get("states"), dict):
        raise UserError(f"{path}: not a card (no `states`): delete it, then {remedy}")
    return card


def write_card(root: Path, model: str, seed: str, card: dict[str, Any]) -> None:
    """Write the card whole, after every state that it lists."""
    results.write_json(card_path(root, model, seed), card)


def check_state(root: Path, model: str, seed: str, state: str) -> str:
    """The sha256 of a state's weights, after the file on disk was hashed and found to be what the card says.

    Raises:
        UserError: no card, no such state, or the file is missing, truncated or changed.
    """
    states = read_card(root, model, seed)["states"]
    if state not in states:
        listed = ", ".join(sorted(states))
        raise UserError(f"{card_path(root, model, seed)}: '{model}' {seed} has no state '{state}', it has: {listed}")
    path = state_dir(root, model, seed, state) / FILE
    found = sha256_file(path) if path.is_file() else "no file"
    if found != states[state]:
        raise UserError(
            f"{path}: expected sha256 {states[state]}, found {found}: "
            f"delete {card_path(root, model, seed).parent} and {AGAIN}"
        )
    return found


def dynamics_path(root: Path, model: str, seed: str) -> Path:
    """What was recorded while a (model, seed) was trained."""
    return Path(root, model, seed, "dynamics.json")


def read_dynamics(root: Path, model: str, seed: str) -> dict[str, Any]:
    """What was recorded while a (model, seed) was trained, as `dynamics.Recorder.log` gave it.

    Raises:
        Unsupported: nothing was; says why. UserError: the file is not the one that the card tells of.
    """
    card = read_card(root, model, seed)
    if card.get("source") != "train":
        raise Unsupported("it was not trained here")
    if not card.get("dynamics"):
        raise Unsupported(
            "its recipe records nothing: set `dynamics` in it to the number of updates between two records"
        )
    path = dynamics_path(root, model, seed)
    found = sha256_file(path) if path.is_file() else "no file"
    if found != card["dynamics"]:
        raise UserError(
            f"{path}: expected sha256 {card['dynamics']}, found {found}: delete {path.parent} and train '{model}' again"
        )
    return results.read_json(path)


def intact(root: Path, model: str, seed: str, **expected: Any) -> bool:
    """Whether there is a card that says all of `expected`, and every state on it is as it was written."""
    if not card_path(root, model, seed).exists():
        return False
    try:
        card = read_card(root, model, seed)
        for state in card["states"]:
            check_state(root, model, seed, state)
        if card.get("dynamics"):
            read_dynamics(root, model, seed)
    except UserError:
        return False
    return all(card.get(key) == value for key, value in expected.items())
