"""The table of results/faults.json: what runs and checkpoints survived."""

import statistics

from scripts.report.results import Results
from scripts.report.studies import markdown, packages_line


def faults_table(results: Results) -> str:
    if "faults" not in results.measured:
        return "Not measured yet."
    result = results.measured["faults"]
    columns = ["fault", "tried", "where it hit, or the outcome", "survived", "silent errors"]
    rows = [[*columns, "lost at most, took", "target"]]
    for row in result["rows"]:
        counts = row.get("phases") or row.get("outcomes") or {}
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        where = ", ".join(f"{name} {count:,}" for name, count in ordered)
        cost = [f"{row['lost_steps']} steps"] if "lost_steps" in row else []
        if row.get("seconds"):
            median, most = statistics.median(row["seconds"]), max(row["seconds"])
            cost.append(f"{median:.1f} s (at most {most:.1f})")
        cost += [f"{row['share_pct']:.2f}%"] if "share_pct" in row else []
        cells = [row["name"], f"{row['tried']:,}", where or "–", f"{row['survived']:,}"]
        target = row["target"] if row["met"] else f"{row['target']} **missed**"
        rows.append([*cells, f"{row['silent']}", ", ".join(cost) or "–", target])
    machine, versions = result["machine"], result["versions"]
    packages = packages_line(versions, "python", "jax", "flax", "orbax-checkpoint")
    commits = ", ".join(sorted({f"`{(row['commit'] or 'none')[:8]}`" for row in result["rows"]}))
    where = f"Commit {commits}: {machine['processor']}, {machine['cores']} cores, {packages}."
    return f"{markdown(rows)}\n\n{where}"
