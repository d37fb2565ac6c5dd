"""Metrics as sums and counts, divided once at the end: every example counts once, whatever the batch size."""

import numpy as np


def summarize(sums) -> dict[str, float]:
    """{"loss": mean per example, "error_pct": 0 to 100} of the sums {"loss", "errors", "count"}; arrays are added up."""
    total = {name: float(np.sum(np.asarray(value, np.float64))) for name, value in sums.items()}
    return {"loss": total["loss"] / total["count"], "error_pct": 100.0 * total["errors"] / total["count"]}
