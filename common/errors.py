"""What a user can get wrong or a machine can do to a run: one readable line each, with an exit code
(sysexits.h).

`common.launch` prints the message of a `UserError` as one line on stderr and exits with its code;
every other exception is a bug and shows its traceback (exit code 1).
"""


class UserError(Exception):
    """A wrong flag, a combination that excludes itself, a refused resume. The message says what is
    allowed.
    """

    exit_code = 2


class DataError(UserError):
    """The examples cannot be used: set not found, wrong shape, labels outside the classes, damaged
    records.
    """

    exit_code = 65


class NonFiniteError(UserError):
    """The loss became NaN or infinite; the message names the step, the last finite loss and the
    last good checkpoint.
    """

    exit_code = 70


class StorageError(UserError):
    """The workdir cannot be written or read: permissions, full disk, no intact checkpoint."""

    exit_code = 74


class LockedError(UserError):
    """Another process is training in the same workdir."""

    exit_code = 75
