"""Draw a digit: one HTML file in which a trained LeNet-5 reads what is drawn, every layer as it
fires. It works from disk and needs no network; on a phone, too.

python -m scripts.demo --workdir=RUN --out=demo.html
"""

import sys
from pathlib import Path

from absl import flags

from common import launch, runtime
from common.errors import UserError
from common.storage import require_place
from common.workdir import write_atomic
from scripts.demo.contents import contents_of
from scripts.demo.page import render
from scripts.runs import is_alexnet, load_run

MAX_BYTES = 1_000_000


def define_flags(flag_values: flags.FlagValues) -> None:
    for name, default, what in (
        ("workdir", "runs/quickstart", "The folder of a LeNet-5 run."),
        ("step", "", "A checkpoint: its step, best (by validation error), or the newest."),
        ("out", "demo.html", "The file to write."),
        ("data_dir", "", "Folder of the prepared sets; the run's own if empty."),
    ):
        flags.DEFINE_string(name, default, what, flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    out = Path(flag_values.out).expanduser()
    require_place(out, "--out", ".html")
    workdir = Path(flag_values.workdir).expanduser()
    if is_alexnet(workdir):
        raise UserError(f"{workdir} is an AlexNet run; the page shows LeNet-5")
    runtime.use_compilation_cache()
    trained = load_run(workdir, flag_values.step or None)
    contents = contents_of(trained, flag_values.data_dir)
    if contents.missing:
        line = f"no digits to choose from: the data is not at hand: {contents.missing}"
        print(line, file=sys.stderr, flush=True)
    page = render(contents).encode()
    if len(page) > MAX_BYTES:
        classes = f"{trained.network.num_classes:,} classes"
        raise UserError(f"the page would have {len(page) / 1e6:.1f} MB: {classes} are too many")
    write_atomic(out, page)
    print(f"{out} written ({len(page) / 1000:,.0f} KB): open it in a browser")


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv))
