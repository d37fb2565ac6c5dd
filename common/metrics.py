"""Metrics as sums and counts, divided once at the end: every example counts once, whatever the
batch size.
"""

import math

import numpy as np


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


def is_chance(sums, num_classes: int) -> bool:
    """Whether the sums {"errors", "count"} have as many errors as guesses, or up to two standard
    deviations less.

    A guess is the most frequent class, where a "confusion" matrix [true, predicted] says which one
    that is; else any class.
    """
    errors, count = float(np.sum(sums["errors"])), float(np.sum(sums["count"]))
    share = 1 / num_classes
    if "confusion" in sums:
        share = np.asarray(sums["confusion"]).sum(axis=1).max() / count
    return bool(errors >= count * (1 - share) - 2 * math.sqrt(count * share * (1 - share)))
