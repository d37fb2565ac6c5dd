"""What a refusal advises. Settings exclude each other: which of the two a user wrote, and which one
came with a preset, is not known, so that the message has a flag to add for either. A name is
unknown: the message has the one that may be meant.
"""

import difflib
import math
import re
from collections.abc import Iterable

from common.errors import UserError


def conflict(problem: str, *ways: str) -> UserError:
    """The error of settings that exclude each other.

    Args:
      ways: flags to add, each of which ends the conflict.
    """
    return UserError(f"{problem}; add {' or '.join(ways)}")


def require_warmup_fits(config) -> None:
    """Raises UserError for a warm-up that the schedule or the number of epochs does not have."""
    if config.warmup_epochs and config.schedule != "cosine":
        ways = ("--warmup_epochs=0", "--schedule=cosine")
        raise conflict(f"--warmup_epochs needs --schedule=cosine, not {config.schedule}", *ways)
    if config.warmup_epochs >= config.num_epochs:
        warmup, epochs = config.warmup_epochs, f"--num_epochs={config.num_epochs}"
        ways = ("--warmup_epochs=0", f"--num_epochs={math.floor(warmup) + 1}")
        raise conflict(f"--warmup_epochs={warmup} must be less than {epochs}", *ways)


def require_tracked_fits(config) -> None:
    """Raises UserError where the split that is tracked is empty, or not the one that ends the
    run.
    """
    if config.track == "validation" and not config.validation_size:
        ways = ("--track=test", "--validation_size=5000")
        raise conflict("--validation_size=0 leaves nothing to validate on", *ways)
    if config.stop_at_validation_error_pct and config.track == "test":
        ways = ("--track=validation", "--stop_at_validation_error_pct=0")
        raise conflict("--stop_at_validation_error_pct is not for --track=test", *ways)


def suggestion(given: str, known: Iterable[str]) -> str:
    """The one of the `known` names that may be meant: the one with these initials, that begins with
    it, or that is closest in its spelling; "" if none is close.
    """
    if not _plain(given):
        return ""
    names = {_plain(name): name for name in known}
    initials = {"".join(word[:1] for word in name.split("_")): name for name in names.values()}
    if len(given) > 1 and given in initials:
        return initials[given]
    for plain, name in names.items():
        if len(_plain(given)) > 2 and plain.startswith(_plain(given)):
            return name
    close = difflib.get_close_matches(_plain(given), names, n=1, cutoff=0.75)
    return names[close[0]] if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
