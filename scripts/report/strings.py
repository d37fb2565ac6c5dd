"""The table of results/strings.json: strings of digits, read in one pass."""

import re

from scripts.report.results import Results
from scripts.report.studies import markdown

WAYS = {
    "one_pass": "in one pass",
    "cut_apart": "cut apart",
    "true_places": "windows at the true places",
}


def strings_table(results: Results) -> str:
    """A row for each network."""
    result = results.measured["strings"]
    rows = [["trained with", "error on single digits", *WAYS.values(), "speed-up"]]
    for row in result["rows"]:
        flags = re.sub(r".*\.train| --workdir=\S+", "", row["training_command"]).strip()
        read = [f"{row[way]['read_pct']:.1f}%" for way in WAYS]
        digits = f"{row['test_error_pct']:.2f}%"
        rows.append([f"`{flags}`", digits, f"**{read[0]}**", *read[1:], f"{row['speed_up']:.1f}"])
    first, machine = result["rows"][0], result["machine"]
    one_pass, sliding = (f"{first[name]:.2f} ms" for name in ("one_pass_ms", "sliding_ms"))
    return (
        f"{markdown(rows)}\n\n"
        f"The share of {result['strings']:,} strings that is read (95% interval: ±1 to 2 points). "
        f"One string has {first['windows']} windows; the first network takes {one_pass} in one "
        f"pass, and {sliding} window by window, all in one batch (the shortest of "
        f"{first['rounds']} rounds). `{result['command']}` at commit `{result['commit'][:8]}`: "
        f"{machine['processor']}, {machine['cores']} cores, JAX {result['versions']['jax']}."
    )
