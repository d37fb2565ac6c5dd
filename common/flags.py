"""A frozen, typed config <-> absl flags: one flag per dataclass field, declared when the program
starts, never at import.

A preset is an absl flagfile (`--flagfile=lenet/presets/paper.flags`); later flags override it;
every run writes its own as `flags.txt`, which replays it. Unknown and ill-typed flags are refused
by absl, in `common.launch`, with exit code 2.
"""

import dataclasses
import json
import math
from typing import Any

from absl import flags


def setting(
    default,
    help_text: str,
    *,
    choices=None,
    lower_bound=None,
    upper_bound=None,
    changes_result: bool = True,
):
    """A config field that becomes the flag of the same name.

    Args:
      default: its value and, by its type (bool, int, float or str), the flag's type.
      help_text: one sentence, with the unit or the source in the paper.
      choices: the allowed strings.
      lower_bound, upper_bound: the allowed range, inclusive.
      changes_result: False for what may differ when a run is resumed (cadences, where the data
        lies, the devices).
    """
    metadata = dict(
        help=help_text,
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
                f"--{name} must be one line without blanks around it.",
                flag_values=flag_values,
            )


def read(config_class, flag_values: flags.FlagValues):
    """The config that the parsed flags describe. Raises UserError (from the config) where settings
    exclude each other.
    """
    return config_class(
        **{field.name: flag_values[field.name].value for field in dataclasses.fields(config_class)}
    )


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
        flag_values(["config.json", *(f"--{name}={_text(value)}" for name, value in given.items())])
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
        f"--{name}={_text(value)}\n" for name, value in dataclasses.asdict(config).items()
    )


def _text(value: Any) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else str(value)
    )  # repr of a float round-trips exactly


def changes(old: dict[str, Any], config) -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of each setting that differs from a saved config and would
    change the result.

    A field that the saved config lacks counts with its default: an option added later does not lock
    old runs out.
    """
    found = []
    for field in dataclasses.fields(config):
        before, now = old.get(field.name, field.default), getattr(config, field.name)
        if field.metadata["changes_result"] and before != now:
            found.append((field.name, before, now))
    return found
