"""Metrics as sums and counts, divided once at the end: every example counts once, whatever the
batch size.
"""

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
