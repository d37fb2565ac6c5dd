"""What the system says when a disk fails, and whether that is about the files; and a name for a
folder that Orbax can use.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

from common.errors import StorageError, UserError

# When reading fails with one of these, it says nothing about the files: they may be whole, and are
# left as they are.
UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE}
UNREADABLE |= {errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}

NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python keeps such bytes of a name
OPEN_FILES = "/proc/self/fd"  # Linux: a folder of links to what this process has open


def literal_path(folder: Path, make: bool, closing: contextlib.ExitStack) -> Path:
    """An absolute path of `folder` that Orbax and TensorStore take as it stands, valid until
    `closing` is closed.

    Orbax passes absolute paths to `glob`, where brackets are a pattern, and merges what that finds:
    nothing, and says that it saved. TensorStore takes a backslash for a slash, text alone, and no
    `..`.

    Args:
      make: whether to make the folder if it is absent.

    Raises UserError where this system has no other path for such a folder.
    """
    folder = folder.resolve()
    if not (re.search(r"[*?\[\\]|:/", str(folder)) or NOT_UTF8.search(str(folder))):
        return folder
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    closing.callback(os.close, opened)
    literal = Path(OPEN_FILES, str(opened))
    if not literal.is_dir():
        raise UserError(
            f"{folder}: checkpoints cannot be kept where a folder's name has *, ?, [, a backslash, "
            "a colon at its end, or bytes that are not UTF-8. Use another --workdir."
        )
    return literal


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are absent. Raises OSError, which names a link
    that leads nowhere: the system only says that it exists.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        for place in (folder, *folder.parents):
            if os.path.islink(place) and not os.path.exists(place):
                said = f"{place} is a link to {os.readlink(place)}, which does not exist"
                raise FileNotFoundError(errno.ENOENT, said) from error
        raise


def require_place(path: Path, flag: str, ending: str) -> None:
    """Raises UserError where no file that ends in `ending` can be written at `path`."""
    if path.is_dir() or path.suffix.lower() != ending:
        raise UserError(f"{flag}={path} must name a file that ends in {ending}")
    if not path.parent.is_dir():
        raise UserError(f"{flag}={path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"{flag}={path}: {path.parent} is not writable")


def storage_error(error: BaseException | None) -> OSError | None:
    """What the system said (such as "No space left on device"), or None if the error does not come
    from the storage.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error
        if found := re.search(
            r"([^:]+) \[os_error_code='(\d+)'", str(error)
        ):  # TensorStore's wording
            return OSError(int(found[2]), found[1].strip())
        error = error.__cause__ or error.__context__
    return None


def unreadable(error: Exception | None) -> str | None:
    """Why the system could not read, or None if there is no error or it is about what was read."""
    found = storage_error(error)
    return found.strerror if found and found.errno in UNREADABLE else None
