"""The presets: what the papers and the released code fix in them, and which settings exclude each
other.
"""

import dataclasses
from pathlib import Path

import pytest
from absl import flags

from alexnet.config import Config
from common.errors import UserError
from common.flags import define, read, to_flagfile

PRESETS = sorted(path.stem for path in Path("alexnet/presets").glob("*.flags"))

# What the sources say; a preset is free in the rest.
FIXED = {
    "deck": dict(  # the lecture deck's table; the constants of the paper's section 3.3
        net="alexnet", widths="2012", towers=1, crop_size=227, conv1_padding="none", norm_order="pool_norm", lrn="across",
        lrn_size=5, lrn_k=2.0, lrn_alpha=1e-4, lrn_alpha_over_n=False, activation="relu", pooling="overlapping",
        dropout=0.5, dropout_at="before",
    ),
    "paper": dict(  # sections 3 to 5
        net="alexnet", widths="2012", towers=2, crop_size=224, conv1_padding="bottom_right", norm_order="norm_pool",
        lrn="within_tower", lrn_size=5, lrn_k=2.0, lrn_alpha=1e-4, lrn_alpha_over_n=False, activation="relu",
        pooling="overlapping", dropout=0.5, dropout_at="after", dropout_scaling="test", initialization="paper",
        hidden_bias=1.0, scaling="mean_image", augmentation="crop_flip", color_pca=True, pad=0, label_smoothing=0.0,
        optimizer="paper", learning_rate=0.01, momentum=0.9, weight_decay=0.0005, decay_biases=True, bias_rate_factor=1.0,
        drop_bias_rate=True, schedule="plateau", num_drops=3, batch_size=128, num_epochs=90, average_decay=0.0,
        ten_crop=True,
    ),
    "code2012": dict(  # layers-145.cfg, layer-params-*.cfg
        towers=2, crop_size=224, conv1_padding="bottom_right", norm_order="code2012", lrn="within_tower", lrn_size=5,
        lrn_k=2.0, lrn_alpha=1e-4, lrn_alpha_over_n=True, dropout=0.5, dropout_at="after", dropout_scaling="test",
        initialization="code2012", hidden_bias=1.0, scaling="mean_image", augmentation="crop_flip", color_pca=True,
        optimizer="paper", learning_rate=0.01, momentum=0.9, weight_decay=0.0005, decay_biases=False, bias_rate_factor=2.0,
        drop_bias_rate=False, schedule="epochs", drop_epoch_numbers=(25, 51, 79), batch_size=128, num_epochs=90,
    ),
    "caffe": dict(  # bvlc_alexnet
        towers=2, crop_size=227, conv1_padding="none", norm_order="norm_pool", lrn="across", lrn_size=5, lrn_k=1.0,
        lrn_alpha=1e-4, lrn_alpha_over_n=True, dropout=0.5, dropout_at="after", initialization="caffe", hidden_bias=0.1,
        scaling="mean_image", augmentation="crop_flip", color_pca=False, optimizer="paper", learning_rate=0.01, momentum=0.9,
        weight_decay=0.0005, decay_biases=False, bias_rate_factor=2.0, drop_bias_rate=True, schedule="epochs",
        drop_epoch_numbers=(20, 40, 60, 80), batch_size=256, num_epochs=90,
    ),
    "torchvision": dict(  # and its reference recipe
        widths="one_weird_trick", towers=1, crop_size=224, conv1_padding="symmetric", lrn="none", dropout=0.5,
        dropout_at="before", dropout_scaling="training", initialization="torch", scaling="standardized",
        augmentation="resized_crop_flip", color_pca=False, optimizer="sgd", learning_rate=0.01, momentum=0.9,
        weight_decay=1e-4, decay_biases=True, bias_rate_factor=1.0, schedule="epochs", drop_epoch_numbers=(30, 60),
        batch_size=256, num_epochs=90,
    ),
    "modern": dict(  # the deck's layers
        widths="2012", towers=1, crop_size=227, conv1_padding="none", norm_order="pool_norm", lrn="across", lrn_k=2.0,
        lrn_alpha=1e-4, lrn_alpha_over_n=False, dropout=0.5, dropout_at="before", schedule="cosine", label_smoothing=0.1,
    ),
    "small": dict(net="alexnet", widths="small", dataset="cifar10", crop_size=32),
    "cifar18": dict(  # layers-18pct.cfg, layer-params-18pct.cfg
        net="cifar18", dataset="cifar10", crop_size=24, lrn="within_map", lrn_size=3, lrn_alpha=5e-5, lrn_alpha_over_n=True,
        lrn_k=1.0, activation="relu", pooling="overlapping", dropout=0.0, scaling="mean_image", augmentation="crop_flip",
        optimizer="paper", learning_rate=0.001, momentum=0.9, weight_decay=0.004, decay_biases=False, bias_rate_factor=2.0,
        schedule="epochs", drop_epoch_numbers=(120, 130), batch_size=128,
    ),
    "cifar13": dict(  # layers-conv-local-13pct.cfg and its parameters
        net="cifar13", dataset="cifar10", crop_size=24, lrn="none", activation="relu", pooling="overlapping", dropout=0.0,
        scaling="mean_image", augmentation="crop_flip", optimizer="paper", learning_rate=0.001, momentum=0.9,
        weight_decay=0.004, decay_biases=False, bias_rate_factor=2.0, schedule="epochs", batch_size=128,
    ),
}  # fmt: skip


def parse(*arguments: str) -> Config:
    values = flags.FlagValues()
    define(Config, values)
    assert len(values(["program", *arguments])) == 1
    return read(Config, values)


def preset(name: str) -> Config:
    return parse(f"--flagfile=alexnet/presets/{name}.flags")


def test_there_are_nine_presets():
    assert sorted(FIXED) == PRESETS


@pytest.mark.parametrize("name", FIXED)
def test_what_the_sources_fix(name):
    config = preset(name)
    assert {setting: getattr(config, setting) for setting in FIXED[name]} == FIXED[name]


@pytest.mark.parametrize("name", FIXED)
def test_a_runs_flagfile_replays_it(name, tmp_path):
    (tmp_path / "flags.txt").write_text(to_flagfile(preset(name)))
    assert parse(f"--flagfile={tmp_path / 'flags.txt'}") == preset(name)


def test_the_defaults_are_the_deck():
    assert preset("deck") == Config() == parse()


def test_modern_is_the_decks_network():
    """Only its weights start otherwise, and what makes up for dropout stands in training."""
    names = [field.name for field in dataclasses.fields(Config)]
    network = names[names.index("net") : names.index("label_smoothing")]
    deck, modern = preset("deck"), preset("modern")
    differing = {name for name in network if getattr(deck, name) != getattr(modern, name)}
    assert differing == {"dropout_scaling", "initialization", "hidden_bias"}


def test_flags_override_a_preset():
    config = parse(
        "--flagfile=alexnet/presets/paper.flags", "--towers=1", "--lrn=across", "--nocolor_pca"
    )
    assert config == dataclasses.replace(preset("paper"), towers=1, lrn="across", color_pca=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--optimizer=adamw"], "--optimizer=adamw.*--momentum=0"),
        (["--warmup_epochs=5"], "--warmup_epochs .*--schedule=cosine"),
        (["--schedule=cosine", "--warmup_epochs=90"], "--warmup_epochs .*--num_epochs=90"),
        (["--schedule=epochs"], "--schedule=epochs .*--drop_epochs"),
        (["--drop_epochs=30"], "--schedule=epochs .*--drop_epochs"),
        (["--schedule=epochs", "--drop_epochs=30;60"], "--drop_epochs=30;60"),
        (["--schedule=epochs", "--drop_epochs=0,30"], "--drop_epochs=0,30"),
        (["--schedule=epochs", "--drop_epochs=30,"], "--drop_epochs=30,"),
        (["--schedule=epochs", "--drop_epochs=30,60,30"], "--drop_epochs=30,60,30"),
        (
            ["--nodrop_bias_rate", "--schedule=cosine"],
            "--nodrop_bias_rate .*--schedule=plateau or epochs",
        ),
        (["--average_decay=1"], "--average_decay"),
        (["--momentum=1"], "--momentum"),
        (["--label_smoothing=1"], "--label_smoothing"),
        (["--dropout=1"], "--dropout"),
        (["--validation_size=0"], "--validation_size=0 .*--track=test"),
        (["--track=test"], "--schedule=plateau .*--track=validation"),
        (["--lrn_size=4"], "--lrn_size=4"),
        (["--initialization=torch"], "--initialization=torch .*--hidden_bias=0"),
        (["--pad=4", "--augmentation=none"], "--pad=4 .*--augmentation=crop_flip"),
        (["--net=cifar18"], "--net=cifar18 .*--dropout=0"),
        (
            ["--net=cifar18", "--dropout=0", "--widths=small"],
            "--widths .*--net=alexnet.*--net=cifar18",
        ),
        (
            ["--net=cifar13", "--dropout=0", "--hidden_bias=0"],
            "--hidden_bias .*--net=alexnet.*--net=cifar13",
        ),
        (
            ["--net=cifar18", "--dropout=0", "--scaling=standardized"],
            "--net=cifar18 .*--scaling=mean_image",
        ),
        (["--lrn=within_tower"], "--lrn=within_tower .*--towers=2.*--lrn=across"),
        (["--net=cifar13", "--dropout=0", "--towers=2"], "--net=cifar13 .*--towers=1"),
    ],
)
def test_settings_that_exclude_each_other(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        parse(*changes)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        ["--optimizer=adamw", "--momentum=0"],
        ["--schedule=cosine", "--warmup_epochs=89"],
        ["--schedule=epochs", "--drop_epochs=30,60"],
        ["--validation_size=0", "--track=test", "--schedule=constant"],
        ["--initialization=torch", "--hidden_bias=0"],
        ["--net=cifar13", "--dropout=0", "--towers=1"],
        ["--pad=4", "--augmentation=crop_flip"],
    ],
)
def test_what_the_refusals_advise_is_accepted(changes):
    parse(*changes)


def test_drop_epochs_are_numbers_in_order():
    assert parse("--schedule=epochs", "--drop_epochs=60,5,30").drop_epoch_numbers == (5, 30, 60)
    assert Config().drop_epoch_numbers == ()
