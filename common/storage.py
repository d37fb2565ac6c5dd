"""What the system says when a disk fails, and whether that is about the files."""

import contextlib
import errno
import gc
import logging
import re
import sys
import time
import warnings

# When reading fails with one of these, it says nothing about the files: they may be whole, and are
# left as they are.
UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE}
UNREADABLE |= {errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


@contextlib.contextmanager
def one_failure_at_a_time():
    """Where one read fails, Orbax abandons those beside it, and asyncio would print a page about
    each: one says it all.
    """
    logger = logging.getLogger("asyncio")
    hooks, logger.disabled = (sys.unraisablehook, sys.excepthook), True
    sys.unraisablehook = sys.excepthook = lambda *_: None
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "coroutine .* was never awaited", RuntimeWarning
        )  # of reads that had yet to start
        try:
            yield
        except Exception:
            time.sleep(0.2)  # lets the abandoned reads end while they go unheard
            gc.collect()
            raise
        finally:
            (sys.unraisablehook, sys.excepthook), logger.disabled = hooks, False


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
