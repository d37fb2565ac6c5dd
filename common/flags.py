"""A frozen, typed config <-> absl flags: one flag per field, declared when the program starts,
never at import.

A preset is a flagfile beside the config class (`--preset=paper`: lenet/presets/paper.flags); later
flags override it. Every run writes its own flagfile, flags.txt, which replays it.
"""

import dataclasses
import json
import math
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from absl import flags

from common.errors import UserError
from common.refusals import suggestion
from common.storage import NOT_UTF8

WIDTH = 100  # columns of --help
_TOO_MANY_DIGITS = re.compile(r"[\da-fA-F_]{1000}")  # also hexadecimal; Python reads 4,300


def setting(
    default,
    help_text: str,
    *,
    section: str = "",
    choices=None,
    lower_bound=None,
    upper_bound=None,
    changes_result: bool = True,
):
    """A config field that becomes the flag of the same name.

    Args:
      default: its value and, by its type (bool, int, float or str), the flag's type.
      help_text: one sentence, with the unit or the section of the paper.
      section: the heading in --help that starts with this flag.
      choices: the allowed strings.
      lower_bound, upper_bound: the allowed range, inclusive.
      changes_result: False for what may differ when a run is resumed (how often it saves, where
        the data lies, the devices).
    """
    metadata = dict(
        help=help_text,
        section=section,
        choices=choices,
        lower=lower_bound,
        upper=upper_bound,
        changes_result=changes_result,
    )
    return dataclasses.field(default=default, metadata=metadata)


def define(config_class, flag_values: flags.FlagValues) -> None:
    """Declares one flag per field of `config_class` in `flag_values`."""
    for field in dataclasses.fields(config_class):
        meta, name, default = field.metadata, field.name, field.default
        common = dict(help=meta["help"], flag_values=flag_values)
        if meta["choices"]:
            flags.DEFINE_enum(name, default, list(meta["choices"]), **common)
        elif isinstance(default, bool):
            flags.DEFINE_boolean(name, default, **common)
        elif isinstance(default, int):
            flags.DEFINE_integer(
                name, default, lower_bound=meta["lower"], upper_bound=meta["upper"], **common
            )
        elif isinstance(default, float):
            flags.DEFINE_float(
                name, default, lower_bound=meta["lower"], upper_bound=meta["upper"], **common
            )
            # NaN compares false with every bound, so absl lets it through.
            flags.register_validator(
                name, math.isfinite, f"--{name} must be a finite number.", flag_values=flag_values
            )
        else:
            flags.DEFINE_string(name, default, **common)
            # A flagfile ends an entry at a line break, and drops blanks around it.
            flags.register_validator(
                name,
                lambda text: text.isprintable() and text == text.strip(),
                f"--{name} must be one line of printable characters, without blanks around it.",
                flag_values=flag_values,
            )


def parse(flag_values: flags.FlagValues, argv: list[str], config_class=None) -> list[str]:
    """Parses a command line into `flag_values`; returns its words that are no flags.

    With a `config_class`, --preset=NAME stands for the flags of that network's preset.

    Raises UserError, on one line, for whatever is wrong.
    """
    for argument in argv[1:]:
        if NOT_UTF8.search(argument):
            raise UserError(f"{argument!a} is not UTF-8: rename it, or, if it is, set PYTHONUTF8=1")
        path = argument.partition("=")[2] or argument
        if os.path.expanduser(path).startswith("~"):
            raise UserError(f"{argument}: no such home folder; write the whole path")
    try:
        arguments = flag_values.read_flags_from_files(argv[1:], force_gnu=False)
        for argument in arguments:
            if _TOO_MANY_DIGITS.search(argument):
                raise UserError(f"{argument[:60]}... has too many digits for a number")
        if config_class:
            arguments = _with_presets(arguments, config_class)
        return flag_values([argv[0], *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        meant = suggestion(error.flagname, list(flag_values))
        raise UserError(
            f"unknown flag --{error.flagname}{f': did you mean --{meant}?' if meant else ''} "
            "(--help lists the flags)"
        ) from error
    except (flags.Error, UnicodeDecodeError) as error:
        message = " ".join(str(error).split()).removeprefix("ERROR:: ")
        raise UserError(f"{message} (--help lists the flags)") from error


def read(config_class, flag_values: flags.FlagValues):
    """The config that the parsed flags describe. Raises UserError (from the config) where settings
    exclude each other.
    """
    return config_class(
        **{field.name: flag_values[field.name].value for field in dataclasses.fields(config_class)}
    )


# ---- presets


def presets(config_class) -> dict[str, Path]:
    """Name -> flagfile of the presets beside the module of `config_class`, sorted by name."""
    folder = Path(sys.modules[config_class.__module__].__file__).parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.flags"))}


def from_preset(config_class, name: str, *arguments: str):
    """The config of a preset, with further flags that override it. Raises UserError."""
    define(config_class, flag_values := flags.FlagValues())
    parse(flag_values, ["preset", f"--preset={name}", *arguments], config_class)
    return read(config_class, flag_values)


def _with_presets(arguments: list[str], config_class) -> list[str]:
    """The arguments with --flagfile=PATH in place of --preset=NAME, and before the others, so that
    those override it wherever they stand. Raises UserError.
    """
    files, others, rest = [], [], iter(arguments)
    for argument in rest:
        flag, equals, name = argument.partition("=")
        if flag in ("--preset", "-preset"):
            files.append(f"--flagfile={_preset(name if equals else next(rest, ''), config_class)}")
        else:
            others.append(argument)
    if len(files) > 1:
        raise UserError("--preset is given twice; a run has one")
    return files + others


def _preset(name: str, config_class) -> Path:
    """The flagfile of a preset. Raises UserError if the network of `config_class` has none such."""
    known = presets(config_class)
    if name in known:
        return known[name]
    network = Path(sys.modules[config_class.__module__].__file__).parent
    others = [
        path.parents[1].name
        for path in network.parent.glob("*/presets/*.flags")
        if path.stem == name
    ]
    what = f"a preset of {others[0]}, not of {network.name}" if others else "unknown"
    allowed = f"{network.name} has {', '.join(known)}" if known else f"{network.name} has none"
    raise UserError(f"--preset={name} is {what}; {allowed}.")


# ---- help


def help_text(flag_values: flags.FlagValues, heading: str, config_class=None) -> str:
    """What --help prints below its description: the presets, the flags that are no settings under
    `heading`, and the settings in their sections.
    """
    sections, found = {heading: []}, {}
    if config_class:
        found = presets(config_class)
        section = "Settings"
        for field in dataclasses.fields(config_class):
            section = field.metadata["section"] or section
            sections.setdefault(section, []).append(field.name)
    settings = {name for names in sections.values() for name in names}
    sections[heading] = [name for name in flag_values if name not in settings | {"h", "help"}]
    parts = []
    if found:
        width = max(map(len, found))
        lines = [_filled(f"  {name:<{width}}  {_claim(found[name])}", width + 4) for name in found]
        parts.append("\n".join(["Presets (--preset=NAME; other flags override it):", *lines]))
    for section, names in sections.items():
        parts.append("\n".join([f"{section}:", *(_flag_help(flag_values[name]) for name in names)]))
    return "\n\n".join(parts)


def _claim(preset: Path) -> str:
    """The lines of a preset's comment up to the first that ends a sentence."""
    claim = []
    for line in preset.read_text().splitlines():
        if not line.startswith("#") or (claim and claim[-1].endswith(".")):
            break
        claim.append(line.lstrip("# ").rstrip())
    return " ".join(claim)


def _flag_help(flag: flags.Flag) -> str:
    """A flag with its default and choices on a line, and its help below."""
    text = flag.help
    if flag.boolean:
        head = f"--[no]{flag.name}  (default: {str(flag.default).lower()})"
    else:
        head = f"--{flag.name}={'' if flag.default in (None, []) else flag.default}"
    if isinstance(flag.parser, flags.EnumParser):
        head += f"  (one of {', '.join(flag.parser.enum_values)})"
        text = text.partition(">: ")[2]  # absl puts <the|choices>: before it
    return f"{_filled(f'  {head}', 6)}\n{_filled(f'      {text}', 6)}"


def _filled(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


# ---- config.json and flags.txt


def from_json(config_class, text: str):
    """The config that a run's config.json holds, a setting that it lacks at its default. Raises
    ValueError for other names, and for values that no flag could have.
    """
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError("it holds no settings")
    if unknown := given.keys() - {field.name for field in dataclasses.fields(config_class)}:
        raise ValueError(f"no setting is called {min(unknown)}")
    define(config_class, flag_values := flags.FlagValues())
    try:
        flag_values(
            ["config.json", *(f"--{name}={text_of(value)}" for name, value in given.items())]
        )
    except flags.Error as error:
        raise ValueError(str(error)) from error
    config = read(config_class, flag_values)
    for name, value in given.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} cannot be {value!r}")
    return config


def to_flagfile(config) -> str:
    """The text of a flagfile that gives this config again: every field, no workdir."""
    return "".join(
        f"--{name}={text_of(value)}\n" for name, value in dataclasses.asdict(config).items()
    )


def text_of(value: Any) -> str:
    """A value as a flag has it."""
    # str of a float round-trips exactly
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(old: dict[str, Any], config) -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of each setting that differs from a saved config and would
    change the result.

    A field that the saved config lacks counts as its default, so that old runs survive new options.
    """
    found = []
    for field in dataclasses.fields(config):
        before, now = old.get(field.name, field.default), getattr(config, field.name)
        if field.metadata["changes_result"] and before != now:
            found.append((field.name, before, now))
    return found


def settings_of(config) -> dict:
    """{"settings": {name: value}} of those that change the result; saved with what they gave."""
    names = [f.name for f in dataclasses.fields(config) if f.metadata["changes_result"]]
    return {"settings": {name: getattr(config, name) for name in names}}


def require_settings(config, saved: dict, path: Path) -> None:
    """Raises UserError where what was saved in `path` is of a run of other settings: it was copied
    there, or config.json was edited. Older runs did not save them.
    """
    changed = changes(saved["settings"], config) if "settings" in saved else ()
    for name, old, new in changed:
        made_longer = name == "num_epochs" and isinstance(old, int) and old < new
        if not made_longer or config.rate_needs_length:
            raise UserError(
                f"{path} is of another run: it was trained with {name} {old!r}, and the run's "
                f"config.json says {new!r}. Use that run's folder."
            )
