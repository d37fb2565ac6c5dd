"""Config <-> flags: what a run writes down replays it, and a resume is refused exactly for what
would change the result.
"""

import dataclasses
import json

import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alexnet.config
import common.flags
import lenet.config
from common.errors import UserError
from common.flags import (
    changes,
    define,
    from_json,
    from_preset,
    help_text,
    presets,
    read,
    setting,
    to_flagfile,
)

NETWORKS = (lenet.config.Config, alexnet.config.Config)


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = setting("mnist", "A name.")
    pooling: str = setting("average", "A choice.", choices=("average", "max"))
    distortions: bool = setting(False, "A switch.")
    batch_size: int = setting(128, "A number.", lower_bound=1)
    learning_rate: float = setting(0.1, "A rate.", lower_bound=0.0, upper_bound=10.0)
    save_every: int = setting(5, "A cadence.", changes_result=False)


CONFIGS = st.builds(
    Config,
    # Flagfiles drop the blanks around a line.
    dataset=st.text().filter(lambda text: text.isprintable() and text == text.strip()),
    pooling=st.sampled_from(("average", "max")),
    distortions=st.booleans(),
    batch_size=st.integers(min_value=1, max_value=2**70),
    learning_rate=st.floats(0.0, 10.0),
    save_every=st.integers(),
)


def parse(*arguments: str) -> Config:
    values = flags.FlagValues()
    define(Config, values)
    assert len(values(["program", *arguments])) == 1
    return read(Config, values)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIGS)
def test_flagfile_replays_every_config(config, tmp_path):
    path = tmp_path / "flags.txt"
    path.write_text(to_flagfile(config), encoding="utf-8")
    assert parse(f"--flagfile={path}") == config


@settings(deadline=None)
@given(config=CONFIGS)
def test_json_gives_every_config_again(config):
    assert from_json(Config, json.dumps(dataclasses.asdict(config))) == config


def test_json_of_another_version_of_the_code_has_its_defaults():
    assert from_json(Config, '{"pooling": "max"}') == Config(pooling="max")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "no settings"),
        ('{"rate": 1}', "rate"),
        ('{"flagfile": "/etc/passwd"}', "flagfile"),
        ('{"batch_size": 0}', "batch_size"),
        ('{"batch_size": "2"}', "batch_size"),
        ('{"batch_size": null}', "batch_size"),
        ('{"learning_rate": NaN}', "learning_rate"),
        ('{"dataset": ["mnist"]}', "dataset"),
        ('{"dataset": "a\\n--seed=3"}', "dataset"),
        ('{"pooling": "min"}', "pooling"),
    ],
)
def test_json_that_no_flags_could_give_is_refused_by_name(text, named):
    with pytest.raises(ValueError, match=named):
        from_json(Config, text)


@given(old=CONFIGS, new=CONFIGS)
def test_changes_are_the_fields_that_differ_and_count(old, new):
    differing = {
        field.name
        for field in dataclasses.fields(Config)
        if getattr(old, field.name) != getattr(new, field.name)
    }
    found = changes(dataclasses.asdict(old), new)
    assert {name for name, _, _ in found} == differing - {"save_every"}
    assert all(
        (before, after) == (getattr(old, name), getattr(new, name)) for name, before, after in found
    )


def test_a_field_younger_than_the_run_counts_with_its_default():
    saved = dataclasses.asdict(Config())
    del saved["pooling"]
    assert changes(saved, Config()) == []
    assert changes(saved, Config(pooling="max")) == [("pooling", "average", "max")]


def test_later_flags_override_the_flagfile(tmp_path):
    path = tmp_path / "preset.flags"
    path.write_text("# a preset\n--batch_size=1\n--distortions\n")
    assert parse(f"--flagfile={path}", "--batch_size=2", "--nodistortions") == Config(batch_size=2)
    assert parse(f"--flagfile={path}") == Config(batch_size=1, distortions=True)


@pytest.mark.parametrize(
    "argument",
    [
        "--no_such_flag=1",
        "--batch_size=0",
        "--batch_size=1.5",
        "--batch_size=many",
        "--learning_rate=nan",
        "--learning_rate=inf",
        "--learning_rate=11",
        "--learning_rate=-0.1",
        "--pooling=median",
        "--distortions=maybe",
        "--dataset=two\nlines",
    ],
)
def test_wrong_values_are_refused_by_name(argument):
    with pytest.raises(flags.Error, match=argument[2:].split("=")[0]):
        parse(argument)


# ---- presets and help


@pytest.mark.parametrize("config_class", NETWORKS)
def test_every_preset_of_a_network_is_found_by_name(config_class):
    assert {"deck", "paper", "modern"} <= presets(config_class).keys()
    configs = {name: from_preset(config_class, name) for name in presets(config_class)}
    assert configs["deck"] == config_class()  # the defaults
    assert len(set(configs.values())) == len(configs)
    changed = from_preset(config_class, "paper", "--seed=3")
    assert changed == dataclasses.replace(configs["paper"], seed=3)


def test_flags_override_the_preset_wherever_they_stand():
    expected = from_preset(lenet.config.Config, "paper", "--seed=3", "--num_epochs=2")
    for arguments in (
        ["--seed=3", "--preset=paper", "--num_epochs=2"],
        ["--seed=3", "--num_epochs=2", "--preset", "paper"],
    ):
        define(lenet.config.Config, values := flags.FlagValues())
        common.flags.parse(values, ["train", *arguments], lenet.config.Config)
        assert read(lenet.config.Config, values) == expected


def test_a_second_preset_is_refused():
    with pytest.raises(UserError, match="--preset is given twice"):
        from_preset(lenet.config.Config, "paper", "--preset=deck")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("cifar18", "--preset=cifar18 .*of alexnet, not of lenet; .*deck, lush, modern, paper"),
        ("papr", "--preset=papr .*deck, lush, modern, paper"),
        ("", "--preset= "),
        ("../presets/paper", "--preset=../presets/paper "),
    ],
)
def test_a_preset_that_the_network_lacks_is_refused(name, named):
    with pytest.raises(UserError, match=named):
        from_preset(lenet.config.Config, name)


@pytest.mark.parametrize("config_class", NETWORKS)
def test_help_lists_every_setting_once_in_its_section(config_class):
    define(config_class, flag_values := flags.FlagValues())
    text = help_text(flag_values, "Command line", config_class)
    sections = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    names = ["Data:", "Network:", "Optimization:", "Run:"]
    assert [section for section in sections if section in names] == names
    for field in dataclasses.fields(config_class):
        switch = isinstance(field.default, bool)
        head = f"  --[no]{field.name} " if switch else f"  --{field.name}={field.default}"
        assert text.count(f"\n{head}") == 1, field.name
    assert all(f"\n  {name} " in text for name in presets(config_class))
    assert max(map(len, text.splitlines())) <= 100
