"""Where a setting of a preset is in the way of a flag, the message says which flag undoes it; and
where a name is unknown, which one may be meant.
"""

import dataclasses
import re

import pytest
from absl import flags

import alexnet.config
import lenet.config
from common import launch
from common.errors import UserError
from common.flags import define, from_preset, parse, presets
from common.prepared import KNOWN, find
from scripts import evaluate
from scripts.prepare import imagenet, qmnist
from scripts.prepare.published import PUBLISHED_SETS

CONFIGS = {"lenet": lenet.config.Config, "alexnet": alexnet.config.Config}
# Values of settings that are no choices or switches, and that others exclude.
VALUES = {
    "lenet": {
        "distorted_copies": 2, "label_smoothing": 0.1, "momentum": 0.5, "num_epochs": 1,
        "stop_at_validation_error_pct": 1.0, "validation_size": 0, "warmup_epochs": 90.0,
        "weight_decay": 0.01,
    },
    "alexnet": {
        "drop_epochs": "3,5", "dropout": 0.3, "hidden_bias": 0.5, "mesh": "data:1,model:2",
        "momentum": 0.5, "num_epochs": 1, "pad": 3, "stop_at_validation_error_pct": 1.0,
        "towers": 1, "validation_size": 0, "warmup_epochs": 90.0,
    },
}  # fmt: skip


def flags_of(network: str) -> list[str]:
    """One flag for each choice, both values of each switch, and VALUES."""
    found = ["--drop_epochs=", "--towers=2"] if network == "alexnet" else []
    for field in dataclasses.fields(CONFIGS[network]):
        if field.metadata["choices"]:
            found += [f"--{field.name}={choice}" for choice in field.metadata["choices"]]
        elif isinstance(field.default, bool):
            found += [f"--{field.name}", f"--no{field.name}"]
    return found + [f"--{name}={value}" for name, value in VALUES[network].items()]


def setting_of(flag: str, network: str) -> str:
    name = flag[2:].partition("=")[0]
    names = {field.name for field in dataclasses.fields(CONFIGS[network])}
    return name if name in names else name.removeprefix("no")


def advised(message: str, network: str, fixed: set[str]) -> list[str]:
    """The flags after the last "add", of the first alternative that leaves the `fixed` settings."""
    for alternative in message.rpartition(" add ")[2].split(" or "):
        found = re.findall(r"--\w+(?:=[\w.,:]*)?", alternative)
        if found and not fixed & {setting_of(flag, network) for flag in found}:
            return found
    raise AssertionError(f"{message!r} does not say what to add beside {sorted(fixed)}")


@pytest.mark.commands
@pytest.mark.parametrize("network", CONFIGS)
def test_what_is_in_the_way_of_a_flag_is_undone_by_the_flags_that_are_named(network):
    """Of each preset with one more flag: whoever follows the advice gets there."""
    followed = 0
    for preset in presets(CONFIGS[network]):
        for flag in flags_of(network):
            added, fixed = [], {setting_of(flag, network)}
            while True:
                try:
                    from_preset(CONFIGS[network], preset, flag, *added)
                    break
                except UserError as error:
                    more = advised(str(error), network, fixed)
                    added += more
                    fixed |= {setting_of(each, network) for each in more}
                    followed += 1
    assert followed > 30


def test_the_flag_to_type_for_another_schedule():
    with pytest.raises(UserError, match=r"--schedule=constant.* add --drop_epochs= or"):
        from_preset(alexnet.config.Config, "cifar18", "--schedule=constant")


# ---- names that may be meant


@pytest.mark.parametrize("network", CONFIGS)
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--lr=0.1", "--learning_rate"),
        ("--epochs=3", "--num_epochs"),
        ("--bs=3", "--batch_size"),
        ("--wd=3", "--weight_decay"),
        ("--batch=3", "--batch_size"),
        ("--batchsize=3", "--batch_size"),
        ("--learning-rate=3", "--learning_rate"),
        ("--optim=sgd", "--optimizer"),
        ("--nodistortion", "--distortions"),
        ("--work_dir=a", "--workdir"),
        ("--dir=a", ""),
        ("--resume", ""),
        ("--z", ""),
        ("--zzz", ""),
    ],
)
def test_an_unknown_flag_names_the_one_that_may_be_meant(network, given, meant):
    define(CONFIGS[network], values := flags.FlagValues())
    flags.DEFINE_string("workdir", "", "A folder.", flag_values=values)
    with pytest.raises(UserError) as caught:
        parse(values, ["train", given])
    message = str(caught.value)
    assert given[2:].partition("=")[0] in message
    if not meant or meant[2:] in values:
        assert ("did you mean" in message) == bool(meant) and f"{meant}?" in message + "?"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fashion-mnist", "fashion_mnist"),
        ("FashionMNIST", "fashion_mnist"),
        ("MNIST", "mnist"),
        ("cifar-10", "cifar10"),
        ("CIFAR10", "cifar10"),
        ("mnist-10k", "mnist10k"),
        ("imagenet", "imagenet_256"),
        ("emnist-balanced", "emnist/balanced"),
        ("my-photos", "my_photos"),
        ("pets2", "pets_"),
        ("mnits", "mnist"),
        ("zebra", ""),
        # Not close to any.
        ("my-digits", ""),
        ("digits", ""),
        ("tiny-imagenet", ""),
        ("e", ""),
        ("kmnist", ""),  # right, but not there
    ],
)
def test_an_unknown_set_names_the_one_that_may_be_meant(given, meant, tmp_path):
    for name in "my_photos", "pets_":
        (tmp_path / name / "1.0.0").mkdir(parents=True)
        (tmp_path / name / "1.0.0/dataset_info.json").touch()
    with pytest.raises(UserError) as caught:
        find(given, [tmp_path])
    message = str(caught.value)
    assert ("did you mean" in message) == bool(meant)
    assert f"--dataset={meant}?" in message or not meant


def test_the_sets_that_can_be_prepared_are_among_those_that_may_be_meant():
    assert {*PUBLISHED_SETS, qmnist.NAME, imagenet.NAME, "mnist10k"} == set(KNOWN)


def score(*arguments: str) -> int:
    words = ("[RUN ...]",)
    return launch.run_tool(evaluate.define_flags, evaluate.main, ["evaluate", *arguments], words)


def test_a_run_is_scored_by_its_folder_alone(tmp_path, capsys):
    for argv in (["runs/none"], ["--workdir=runs/none"], ["runs/none", "--json"]):
        assert score(*argv) == 2
        assert "runs/none holds no run" in capsys.readouterr().err
    for argv in ([], ["a", "b"], ["a", "--workdir=b"]):
        assert score(*argv) == 2
        assert "one run" in capsys.readouterr().err


def test_a_step_of_more_digits_than_python_reads(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert score(str(tmp_path), f"--step={'1' * 5000}") == 2
    error = capsys.readouterr().err
    assert "--step=1" in error and error.count("\n") == 1 and len(error) < 300
