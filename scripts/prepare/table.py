"""The table at the end of a preparation: what each split and class got, what was left out, why."""

from collections import Counter
from collections.abc import Collection

from common.classes import listed
from scripts.prepare.layouts import Source

MAX_ROWS = 40  # of classes; of more, those with the fewest and the most images


def table(found: Source, corrupt: Collection[str] = ()) -> str:
    """Lines of text.

    Args:
      found: what was listed.
      corrupt: the names of files that could not be read.
    """
    corrupt = set(corrupt)
    counts = {
        split: Counter(file.label for file in files if file.name not in corrupt)
        for split, files in found.splits.items()
    }
    found_of = Counter(file.label for files in found.splits.values() for file in files)
    rows = [
        (found.class_names[label], [counts[split][label] for split in counts])
        for label in sorted(found_of)
    ]
    shown = rows
    if len(rows) > MAX_ROWS:
        rows.sort(key=lambda row: sum(row[1]))
        shown = [*rows[: MAX_ROWS // 2], ("...", []), *rows[-MAX_ROWS // 2 :]]
    total = f"all {len(rows):,} classes", [sum(count.values()) for count in counts.values()]
    width = max(len(name) for name, _ in [*shown, total])
    lines = [" " * (width + 2) + "".join(f"{split:>12}" for split in counts)]
    for name, numbers in [*shown, total]:
        lines.append(f"  {name:<{width}}" + "".join(f"{number:>12,}" for number in numbers))
    for split, count in counts.items():
        missing = [found.class_names[label] for label in sorted(found_of) if not count[label]]
        if missing:
            lines.append(f"no image in {split}: {listed(missing)}")
    if corrupt:
        lines.append(f"left out: {len(corrupt):,} corrupt files, such as {min(corrupt)}")
    for reason, names in found.left_out.items():
        lines.append(f"left out: {len(names):,} {reason}: {listed(names)}")
    return "\n".join(lines)
