"""The one error a user may meet: what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno
import re
from difflib import get_close_matches

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_IN_RUST = re.compile(rf"\(os error ({'|'.join(map(str, _FULL))})\)")  # safetensors and tokenizers write by Rust


class UserError(Exception):
    """Bad input or an impossible request, refused before expensive work.

    The command line prints it as three short lines and exits with code 2; no traceback.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the file, row, field or configuration key it was found at.
        fix: what the person can do about it.
    """

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        self.what, self.where, self.fix = _line(what), _line(where), _line(fix)
        super().__init__(f"{self.what}\n  where: {self.where}\n  fix:   {self.fix}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments survive a process boundary
        return _rebuild, (self.what, self.where, self.fix)


def _line(text: str) -> str:
    """Three lines stay three, whatever a library's message or a file's content brings along."""
    return " ".join(part for line in text.splitlines() if (part := line.strip()))


def _rebuild(what: str, where: str, fix: str) -> UserError:
    return UserError(what, where=where, fix=fix)


def nearest(name: str, valid: list[str]) -> str:
    """A "did you mean" phrase for a misspelt name: the closest valid one, or the list of them."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid names: {', '.join(sorted(valid))}" if valid else "there is nothing of that kind"


def no_room(error: BaseException | None) -> BaseException | None:
    """The error itself, or the one it came from, that says a device or a quota is full; None where none does."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if (isinstance(error, OSError) and error.errno in _FULL) or _FULL_IN_RUST.search(str(error)):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
