"""Results and the tables made of them:

    python -m scripts.report              writes the tables of all READMEs
    python -m scripts.report --check      writes nothing; exit code 2 if a table is stale
    python -m scripts.report --add --study=NAME [--arm=NAME] RUN ...
                                          copies finished runs into results/, then as above
    python -m scripts.report RUN ...      draws the curves of any runs into --out=runs.png, and
                                          prints the settings that differ
    python -m scripts.report --figures    draws results/networks-*.svg again, then as above

--add writes one file a run, with `network`, `preset`, `study`, `arm`, `seed` and the error curves
beside what result.json holds. Runs of one network and study share a table, with one row for each
arm over its seeds; the arm is the run's preset unless --arm names it. Titles, targets and the
papers' figures of the rows are in scripts/report/studies.py. In a README, a table stands between
`<!-- report: NAME -->` and `<!-- /report -->`.
"""

import re
import sys
from pathlib import Path

from absl import flags

from common.errors import UserError
from common.launch import run_tool
from common.workdir import write_atomic
from scripts.report import faults, figures, ledger, results, speed, strings, studies, verdicts
from scripts.report.results import RESULTS, ROOT
from scripts.report.runs import compare as compare_runs

PAGES = (
    "README.md",
    "results/README.md",
    "common/README.md",
    "scripts/README.md",
    "lenet/README.md",
    "alexnet/README.md",
)
TABLES = {  # what a README names -> Results to Markdown
    "headline": studies.headline_table,
    "studies": studies.all_studies,
    "verdicts": lambda found: verdicts.verdict_table(
        [study for study in found.studies if study["name"] in verdicts.HEADLINE]
    ),
    "all_verdicts": lambda found: verdicts.all_verdicts(found.studies),
    "lenet_confusions": studies.confusions_table,
    "strings": strings.strings_table,
    "lenet_distortions": lambda found: studies.study_table(found, "lenet", "distortions"),
    "machines": studies.machines_line,
    "agreement": studies.agreement_line,
    "speed": speed.short_table,
    "benchmark": speed.benchmark_table,
    "benchmark_gpu": speed.gpu_table,
    "attempts": speed.attempts_table,
    "profile": speed.profile_table,
    "scaling": speed.scaling_table,
    "faults": faults.faults_table,
    "claims": lambda found: ledger.ledger_table(ledger.check(found)),
}


def define_flags(flag_values: flags.FlagValues) -> None:
    own = dict(flag_values=flag_values)
    flags.DEFINE_boolean(
        "check", False, "Write nothing; exit with 2 if a README differs from results/.", **own
    )
    flags.DEFINE_boolean("add", False, "Copy the finished runs RUN ... into results/.", **own)
    flags.DEFINE_string("study", "", "--add: what the runs belong to, such as presets.", **own)
    flags.DEFINE_string(
        "arm", "", "--add: the runs' row in the study; their preset if empty.", **own
    )
    flags.DEFINE_string("out", "runs.png", "RUN ...: the picture, .png or .svg.", **own)
    flags.DEFINE_boolean("figures", False, "Draw results/networks-*.svg again.", **own)


def main(flag_values: flags.FlagValues, *runs: str) -> None:
    if flag_values.add and not runs:
        raise UserError("--add needs the folders of finished runs.")
    if flag_values.check and (runs or flag_values.figures):
        raise UserError("--check writes nothing: not with --add, --figures or runs.")
    if (flag_values.study or flag_values.arm) and not flag_values.add:
        raise UserError("--study and --arm belong to --add.")
    if flag_values.figures and runs and not flag_values.add:
        raise UserError("--figures draws the READMEs' pictures: not with RUN ... alone.")
    if runs and not flag_values.add:
        return compare_runs([Path(run) for run in runs], Path(flag_values.out))
    results.load(RESULTS)  # a damaged file is told before anything is written
    if flag_values.add:
        for path in results.add(map(Path, runs), flag_values.study, flag_values.arm, RESULTS):
            print(f"{path.relative_to(ROOT)} written")
    if flag_values.figures:
        figures.draw_all(RESULTS)
    found = results.load(RESULTS)
    for name in PAGES:
        page = ROOT / name
        old = page.read_text()
        new = fill(old, found)
        if flag_values.check and new != old:
            raise UserError(f"{name} differs from results/; `python -m scripts.report` writes it")
        if new != old:
            write_atomic(page, new)
            print(f"{name} written")


def fill(page: str, found: results.Results) -> str:
    """The page with each of its tables made anew."""

    def replaced(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match[2]](found)}\n{match[3]}"

    pattern = r"(<!-- report: (\w+) -->)\n.*?(<!-- /report -->)"
    return re.sub(pattern, replaced, page, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(run_tool(define_flags, main, sys.argv, ("[RUN ...]",)))
