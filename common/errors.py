"""The ways a run can fail that are not bugs: one line on stderr and an exit code (sysexits.h).

`common.launch` prints the message of a `UserError` and exits with its code; every other exception
is a bug and shows its traceback (exit code 1).
"""

INTERRUPTED = "interrupted; rerun the same command to continue."


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters that a terminal only shows."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)


class Interrupted(Exception):
    """`Interrupted(signal_number)`: a stop signal came; the loop saves its state and re-raises."""


class UserError(Exception):
    """A wrong flag, settings that exclude each other, a refused resume. The message says what is
    allowed.
    """

    exit_code = 2


class DataError(UserError):
    """Unusable data: set not found, wrong shape, labels out of range, corrupt records."""

    exit_code = 65


class NonFiniteError(UserError):
    """A NaN or infinite loss or state. The message names the step, the last finite loss and the
    last good checkpoint.
    """

    exit_code = 70


class StorageError(UserError):
    """The run's folder cannot be written or read: permissions, full disk, no intact checkpoint."""

    exit_code = 74


class LockedError(UserError):
    """Another process is training in the same folder."""

    exit_code = 75
