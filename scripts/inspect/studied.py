"""A study in a report: what was asked, the verdict, the figure."""

from pathlib import Path

from common.errors import UserError
from scripts.inspect.parts import Drawing, Subject, Table
from scripts.report import verdicts
from scripts.report.results import NAME, RESULTS, read_json

MAX_FIGURE_BYTES = 1_000_000


def folder_of(target: str) -> Path | None:
    """The folder of a study: `target` itself, or of that name in results/; None if it is none."""
    folder = Path(target).expanduser()
    if NAME.fullmatch(target) and not folder.exists():
        folder = RESULTS / target
    is_run = (folder / "config.json").exists()
    return folder if (folder / "study.json").is_file() and not is_run else None


def subject(folder: Path, name: str) -> Subject:
    """Raises UserError where study.json is not one that `scripts.ablate` wrote."""
    path = folder / "study.json"
    try:
        study = read_json(path)
        head, *rows = verdicts.rows(study)
        sentences = verdicts.sentences(study)
        about = [
            ("runs", f"{study['pairs']} pairs, {verdicts.trained(study)}"),
            ("command", f"{study['command']}"),
            ("commits", ", ".join(study["commits"])),
            ("machines", "; ".join(study["machines"])),
        ]
        if study["others"]:
            about.insert(0, ("others measured", study["others"]))
        if study["claim"]:
            about.insert(0, ("the claim", f"{study['claim']} ({study['source']})"))
        title = " ".join([study["question"], *study["added"]])
        summary = f"Study {study['name']}: {'; '.join(sentences)}."
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        StopIteration,  # no arms
    ) as error:
        raise UserError(f"{path} is not a study that scripts.ablate wrote") from error
    verdict = [(f"{number}", sentence) for number, sentence in enumerate(sentences, 1)]
    parts = [
        Table("verdict", "Verdict", "", (), verdict),
        Table("arms", "The arms", "", tuple(head), [tuple(row) for row in rows]),
        Table("what_was_run", "What was run", "", (), about),
    ]
    missing, figure = [], read_figure(folder)
    if figure["svg"]:
        alt = f"Every run's error over its epochs, and what was measured of each: {title}"
        parts.insert(1, Drawing("figure", "Every run", "", alt, min_width=640, **figure))
    else:
        missing.append("figure.svg is not there, is a link, or is too large.")
    return Subject(name, title, summary, parts, missing)


def read_figure(folder: Path) -> dict[str, bytes]:
    """The files as they are, shown as pictures, in which nothing runs; b"" for what is no file of
    the study's own.
    """
    found = {}
    for form in ("svg", "png"):
        path = folder / f"figure.{form}"
        is_own = path.is_file() and not path.is_symlink()
        is_own = is_own and path.stat().st_size <= MAX_FIGURE_BYTES
        found[form] = path.read_bytes() if is_own else b""
    return found
