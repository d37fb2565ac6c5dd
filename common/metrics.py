"""Metrics as sums and counts, divided once at the end: every example counts once, whatever the
batch size.
"""

import math

import numpy as np

from common.errors import NonFiniteError


def summarize(sums) -> dict[str, float]:
    """{"loss": mean per example, "error_pct": 0 to 100} of the sums {"loss", "errors", "count"};
    arrays are added up.

    `top5_errors`, where there are any, become "top5_error_pct".
    """
    total = {name: float(np.sum(np.asarray(value, np.float64))) for name, value in sums.items()}
    shares = {"error_pct": "errors", "top5_error_pct": "top5_errors"}
    return {"loss": total["loss"] / total["count"]} | {
        name: 100.0 * total[errors] / total["count"]
        for name, errors in shares.items()
        if errors in total
    }


def scores_of(sums, split: str) -> dict[str, float]:
    """`summarize` of a split that is scored. Raises NonFiniteError for a NaN or infinite loss, with
    which the errors mean nothing: NaNs are never the largest.
    """
    scores = summarize(sums)
    if not math.isfinite(scores["loss"]):
        raise NonFiniteError(f"the {split} loss is {scores['loss']}: its error means nothing")
    return scores


def is_chance(sums, num_classes: int) -> bool:
    """Whether there are errors, and at least as many, of the sums {"errors", "count"}, as a guess
    makes: naming the most frequent class always, where a "confusion" matrix [true, predicted] says
    which one that is; else any class.
    """
    errors, count = float(np.sum(sums["errors"])), float(np.sum(sums["count"]))
    right = count / num_classes
    if "confusion" in sums:
        right = np.asarray(sums["confusion"]).sum(axis=1).max()
    return bool(errors and errors >= count - right)
