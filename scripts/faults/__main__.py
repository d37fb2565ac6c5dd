"""What a run survives: the real commands, killed, stopped, out of disk space and in an odd
environment; checkpoints, corrupted or made to harm; data that lies; the number of devices, changed.

    python -m scripts.faults [--full] [--only=kill,damage] [--json=results/faults.json]

Without --full each fault is tried a few times; --full takes about 40 minutes on two quiet cores.
Moments and places are drawn from --seed. A run survives if it ends like a run without faults: the
same SHA-256 of the state, the same lines in metrics.jsonl; or is refused at its start, where a row
says so. A silent error is a run that succeeds with another state, a wrong score, or a corrupt
checkpoint that is restored as if it were intact. The rows are written after each fault; rows of
other faults in the file stay. Exit code 1 if something did not survive or missed its target.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from common import launch, provenance
from common.errors import UserError
from common.storage import require_place
from common.workdir import write_atomic
from scripts.faults.damage import damage
from scripts.faults.data import data
from scripts.faults.disk import disk, failed_save
from scripts.faults.environment import environment
from scripts.faults.interruptions import kill, stop
from scripts.faults.messages import messages
from scripts.faults.nonfinite import nonfinite
from scripts.faults.paths import paths
from scripts.faults.releases import releases
from scripts.faults.restarts import devices, locked, restart
from scripts.faults.saving import save
from scripts.faults.stranger import stranger
from scripts.report.results import kept_rows

# Each is called with (full, an empty folder, a random generator) and yields rows.
FAULTS = {
    fault.__name__: fault
    for fault in (
        *(kill, stop, damage, disk, nonfinite, locked, restart, devices, save, messages, paths),
        *(failed_save, stranger, releases, data, environment),
    )
}


def define_flags(flag_values: flags.FlagValues) -> None:
    def define(definer, *arguments, **options) -> None:
        definer(*arguments, flag_values=flag_values, **options)

    define(flags.DEFINE_boolean, "full", False, "As many tries as the published table.")
    define(flags.DEFINE_list, "only", [], f"Faults to try, of {', '.join(FAULTS)}; empty: all.")
    define(flags.DEFINE_string, "json", "", "Write the rows to this file, after each fault.")
    define(flags.DEFINE_integer, "seed", 0, "Decides moments and places.", lower_bound=0)


def main(flag_values: flags.FlagValues) -> None:
    chosen, path = flag_values.only or list(FAULTS), Path(flag_values.json).absolute()
    unknown = [name for name in chosen if name not in FAULTS]
    if unknown:
        raise UserError(f"--only={unknown[0]} is unknown; allowed: {', '.join(FAULTS)}")
    if flag_values.json:
        require_place(path, "--json", ".json")
    source = provenance.collect(seed=flag_values.seed, dataset="")
    del source["dataset"]
    of_each = {"full": flag_values.full}
    of_each |= {name: source.pop(name) for name in ("seed", "commit", "command")}
    rows, new = [], []
    if flag_values.json:
        rows = kept_rows(path, "faults", "fault", chosen, source)
    for name in chosen:
        began, draw = time.monotonic(), random.Random(f"{flag_values.seed} {name}")
        with tempfile.TemporaryDirectory() as folder:
            for found in FAULTS[name](flag_values.full, Path(folder), draw):
                ended = time.monotonic()
                new.append({"fault": name} | found | of_each | {"took_s": ended - began})
                began = ended
                print(line(new[-1]), flush=True)
                if flag_values.json:
                    _write(path, rows + new, source)
    if any(found["silent"] or found["survived"] < found["tried"] for found in new):
        sys.exit("error: not everything survived, see above.")
    if missed := [found["name"] for found in new if not found["met"]]:
        sys.exit(f"error: everything survived, but targets were missed: {'; '.join(missed)}.")


def _write(path: Path, rows: list[dict], source: dict) -> None:
    order = [*FAULTS, *(found["fault"] for found in rows)]  # a fault may have been renamed
    rows = sorted(rows, key=lambda found: order.index(found["fault"]))
    write_atomic(path, json.dumps({"kind": "faults", "rows": rows, **source}, indent=2) + "\n")


def line(found: dict) -> str:
    """A row as text."""
    tried, survived, silent = found["tried"], found["survived"], found["silent"]
    parts = [f"{found['name']}: tried {tried}, survived {survived}, silently wrong {silent}"]
    parts += [str(found[counts]) for counts in ("phases", "outcomes", "ends") if counts in found]
    if "lost_steps" in found:
        parts.append(f"lost at most {found['lost_steps']} steps")
    if seconds := found.get("seconds"):
        parts.append(f"{statistics.median(seconds):.2f} s (at most {max(seconds):.2f})")
    if "share_pct" in found:
        parts.append(f"{found['share_pct']:.2f}% of the time")
    missed = "" if found["met"] else ": MISSED"
    return f"{', '.join(parts)}; target: {found['target']}{missed} [{found['took_s']:.0f} s]"


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
