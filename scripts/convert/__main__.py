"""Takes AlexNet's weights from other programs, and gives the weights of a run to them:

python -m scripts.convert import FILE RUN       FILE: torchvision's or Caffe's weights, as
                                                .safetensors or .npz; RUN: a folder to be made
python -m scripts.convert export RUN FOLDER     FOLDER, to be made: model.safetensors, the program
                                                (StableHLO), and a model card, README.md

evaluate, predict, inspect and --init_from take the imported run like any other.
"""

import sys
from pathlib import Path

from absl import flags

from common import launch, runtime
from common.errors import UserError, one_line
from scripts.convert.exporting import export_run
from scripts.convert.importing import import_weights
from scripts.convert.layouts import LAYOUTS

WORDS = ("import|export", "FROM", "TO")
MAX_NAMES = 10_000_000  # characters of the file with names


def define_flags(flag_values: flags.FlagValues) -> None:
    own = dict(flag_values=flag_values)
    flags.DEFINE_enum(
        "layout",
        "auto",
        ["auto", *LAYOUTS],
        "import: whose weights; auto: by their names, those of Caffe as bvlc_alexnet's (caffenet: "
        "bvlc_reference_caffenet's, which pools first and has the same names).",
        **own,
    )
    flags.DEFINE_string(
        "class_names", "", "import: a text file with the name of each output on a line.", **own
    )
    flags.DEFINE_string(
        "mean_image",
        "",
        "import, Caffe: its mean image, .npy with (3, 256, 256) values, BGR; the mean of each "
        "channel if empty.",
        **own,
    )
    flags.DEFINE_string(
        "step", "", "export: a checkpoint: its step, best, or the newest if empty.", **own
    )


def main(flag_values: flags.FlagValues, command: str, source: str, target: str) -> None:
    source, target = Path(source).expanduser(), Path(target).expanduser()
    unread = {"import": ("step",), "export": ("layout", "class_names", "mean_image")}
    for name in unread.get(command, ()):
        if flag_values[name].present:
            raise UserError(f"--{name} is not for {command}")
    if command == "import":
        runtime.mute_orbax_tracebacks()
        mean_image = flag_values.mean_image
        print(
            import_weights(
                source,
                target,
                flag_values.layout,
                class_names(flag_values.class_names),
                Path(mean_image).expanduser() if mean_image else None,
            )
        )
    elif command == "export":
        print(export_run(source, target, flag_values.step or None))
    else:
        raise UserError(f"{command!r} is neither import nor export")


def class_names(file: str) -> tuple[str, ...]:
    """The lines of a text file; () without one. Raises UserError."""
    if not file:
        return ()
    try:
        with Path(file).expanduser().open(encoding="utf-8-sig") as opened_file:
            lines = opened_file.read(MAX_NAMES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={file} cannot be read: {one_line(error)}") from error
    return tuple(line.strip() for line in lines if line.strip())


if __name__ == "__main__":
    sys.exit(launch.run_tool(define_flags, main, sys.argv, WORDS))
