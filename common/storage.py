"""What the system says when a disk fails, and whether that is about the files."""

import errno
import re

# When reading fails with one of these, it says nothing about the files: they may be whole, and are
# left as they are.
UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE}
UNREADABLE |= {errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


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
