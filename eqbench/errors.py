"""What a user's mistake looks like: one line that says where, what was expected, and what to do (no torch)."""

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 15  # allowed names that an error lists
LONGEST = 900  # characters of a line that is still read


class UserError(Exception):
    """A mistake in the input, not in the code: shown as one line, exit code 2, never a traceback."""


class Unsupported(Exception):
    """A cell that cannot be measured and says why: it becomes a row with status `skipped`."""


class Misfit(UserError, Unsupported):
    """A group and a shape that do not go together: a user's mistake in a notebook, a skipped cell in a suite."""


class Failed(Exception):
    """A cell whose measurement went wrong in a foreseen way: it becomes a row with status `failed`."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of a GPU or of the CPU, had nothing left.

    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    True
    """
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def unknown(what: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not one of the allowed ones, with the nearest spelling first.

    >>> print(unknown("probe", "orbt", ["orbit", "spectrum"]))
    unknown probe 'orbt': did you mean 'orbit'? Allowed: orbit, spectrum
    """
    names = sorted(allowed)
    near = get_close_matches(name, names, n=1, cutoff=0.5) or [known for known in names if name and name in known]
    hint = f" did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
    return UserError(f"unknown {what} '{name}':{hint} Allowed: {shown or '(none)'}")


def one_line(error: BaseException) -> str:
    """The message of an exception, folded to one line; of a very long one, the start and the end."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"
