"""Looks inside runs and studies: one HTML file with what was run, how it went, the mistakes, what
was learned, and what the network makes of a picture:

python -m scripts.inspect RUN_OR_STUDY... [--image=FILE] --out=report.html [--figures=DIR]

A study is the folder of one, or its name in results/. The file needs no network and runs no script.
"""

import re
import sys
from pathlib import Path

from absl import flags

from common import launch, runtime
from common.errors import StorageError, UserError
from common.storage import make_folder, require_place
from common.workdir import write_atomic
from scripts.inspect import contents, page, slides, studied
from scripts.inspect.opened import open_run


def define_flags(flag_values: flags.FlagValues) -> None:
    for name, default, what in (
        ("image", "", "A picture of your own to look at; a test example if empty."),
        ("out", "report.html", "The file to write."),
        ("figures", "", "A folder for the same pictures as PNG and SVG; made if absent."),
        ("data_dir", "", "Folder of the prepared sets; the run's own if empty."),
    ):
        flags.DEFINE_string(name, default, what, flag_values=flag_values)


def main(flag_values: flags.FlagValues, *targets: str) -> None:
    if not targets:
        raise UserError("name the folders of runs or studies, such as runs/first")
    out = Path(flag_values.out).expanduser()
    figures = Path(flag_values.figures).expanduser() if flag_values.figures else None
    studies = [studied.folder_of(target) for target in targets]
    if flag_values.image and all(studies):
        raise UserError("--image does not apply to studies: it needs the folder of a run")
    require_writable(out, figures)
    runtime.use_compilation_cache()
    subjects = []
    for target, name, study in zip(targets, names_of(targets), studies, strict=True):
        if study:
            subjects.append(studied.subject(study, name))
        else:
            run = open_run(Path(target).expanduser(), flag_values.data_dir)
            subjects.append(contents.of_run(run, name, flag_values.image))
    report = page.render(subjects).encode()
    try:
        if figures:
            print(f"{figures}: {slides.write(subjects, figures)} pictures written")
        write_atomic(out, report)
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or out}: {error.strerror}") from error
    print(f"{out} written ({len(report) / 1000:,.0f} KB)")


def require_writable(out: Path, figures: Path | None) -> None:
    """Makes the folder `figures`. Raises UserError where the files cannot be written."""
    require_place(out, "--out", ".html")
    try:
        if figures:
            make_folder(figures)
    except OSError as error:
        raise StorageError(f"--figures={figures}: {error.strerror or error}") from error


def names_of(targets: tuple[str, ...]) -> list[str]:
    """A name for links and folders of each: the last part of its path, and, where these are not
    different names, its number.
    """
    paths = [Path(target).absolute().name for target in targets]
    names = [re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") for name in paths]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{name}_{number}" for number, name in enumerate(names, 1)]


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv, ("[RUN_OR_STUDY ...]",)))
