"""When a run ends before its last epoch: once the error of an epoch is at or below the config's
`stop_at_train_error_pct` or `stop_at_validation_error_pct`.
"""


def criteria(config) -> dict[str, float]:
    """Split -> the error in percent that ends the run; without those that are not set."""
    limits = {
        "train": config.stop_at_train_error_pct,
        "validation": config.stop_at_validation_error_pct,
    }
    return {split: limit for split, limit in limits.items() if limit}


def met(config, errors: dict[str, float]) -> str | None:
    """The first split whose error in percent meets its criterion; None if none does.

    Args:
      errors: of an epoch, for each split that has a criterion. That of training is the mean over
        the epoch, measured while learning.
    """
    return next(
        (split for split, limit in criteria(config).items() if errors[split] <= limit), None
    )


def until(config) -> str:
    """What ends the run, such as "training error <= 25%"; "" if only its number of epochs does."""
    names = {"train": "training", "validation": "validation"}
    limits = criteria(config).items()
    return " or ".join(f"{names[split]} error <= {limit:g}%" for split, limit in limits)


def entries(config, stopped_by: str | None, epochs: int) -> dict:
    """What result.json says of the criteria, if any is set: null where none was met.

    Args:
      stopped_by: as `met` gives it.
      epochs: that were trained.
    """
    if not criteria(config):
        return {}
    return {
        "stopped_after_epochs": epochs if stopped_by else None,
        "stopped_by": f"stop_at_{stopped_by}_error_pct" if stopped_by else None,
    }
