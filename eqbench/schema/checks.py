"""What every schema shares (no torch)."""

from enum import StrEnum

from eqbench.errors import UserError

ALL = "all"  # of a job: every state of its seed, or every cell of a state
UNGROUPED = "none"  # the trivial group: probes that have no group write their one cell here


class Split(StrEnum):
    """Which images of a data set."""

    train = "train"
    test = "test"


def require(ok: bool, key: str, expected: str, value: object) -> None:
    """Refuse a value.

    Raises:
        UserError: names the key, what was expected, and the value.
    """
    if not ok:
        raise UserError(f"{key}: expected {expected}, got {value!r}")
