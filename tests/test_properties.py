"""What must hold for all values: configs come back from what a run writes down, the order of the
data is everybody's, digests see every bit.
"""

import contextlib
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import alexnet.config
import alexnet.data
import lenet.config
import lenet.data
from common.digests import state_sha256
from common.errors import UserError
from common.examples import Examples
from common.flags import changes, define, read, to_flagfile
from common.order import eval_batches

CONFIG_CLASSES = pytest.mark.parametrize(
    "config_class", [lenet.config.Config, alexnet.config.Config], ids=["lenet", "alexnet"]
)

# Configs


def values(field: dataclasses.Field) -> st.SearchStrategy:
    """What the flag of a field takes."""
    bounds = field.metadata["lower"], field.metadata["upper"]
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if isinstance(field.default, bool):
        return st.booleans()
    if isinstance(field.default, int):
        return st.integers(*bounds)
    if isinstance(field.default, float):
        return st.floats(*bounds, allow_nan=False, allow_infinity=False)
    return st.text().filter(lambda text: text.isprintable() and text == text.strip())


@st.composite
def changed_settings(draw, config_class):
    """Up to three settings away from the default; a dozen at random would always exclude each
    other.
    """
    fields = st.sampled_from(dataclasses.fields(config_class))
    chosen = draw(st.lists(fields, max_size=3, unique_by=lambda field: field.name))
    return {field.name: draw(values(field)) for field in chosen}


def parse(config_class, *arguments: str):
    flag_values = flags.FlagValues()
    define(config_class, flag_values)
    assert len(flag_values(["program", *arguments])) == 1
    return read(config_class, flag_values)


@CONFIG_CLASSES
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
    max_examples=50,
)
@given(data=st.data())
def test_every_config_comes_back_from_flags_txt_the_command_line_and_config_json(
    config_class, data, tmp_path
):
    changed = data.draw(changed_settings(config_class))
    try:  # not within the strategy: the checks of annotations draw random numbers of their own
        config = config_class(**changed)
    except UserError:
        assume(False)
    path = tmp_path / "flags.txt"
    path.write_text(to_flagfile(config), encoding="utf-8")
    assert parse(config_class, f"--flagfile={path}") == config
    assert parse(config_class, *to_flagfile(config).splitlines()) == config
    saved = json.loads(json.dumps(dataclasses.asdict(config)))
    assert config_class(**saved) == config and changes(saved, config) == []


@CONFIG_CLASSES
@given(data=st.data())
def test_no_string_smuggles_a_second_flag_into_flags_txt(config_class, data):
    """A value is refused or is one line of the flagfile, whatever line breaks Unicode has."""
    strings = [
        field.name for field in dataclasses.fields(config_class) if isinstance(field.default, str)
    ]
    name = data.draw(st.sampled_from(strings))
    text = (
        data.draw(st.text())
        + data.draw(st.sampled_from("\n\r\v\f\x1c\x85\u2028\u2029"))
        + "--seed=1"
        + data.draw(st.text())
    )
    with pytest.raises(flags.Error, match=name):
        parse(config_class, f"--{name}={text}")


# The order of the data


@dataclasses.dataclass(frozen=True)
class Numbers:
    """`count` examples: example i is a pixel and has the label i."""

    count: int
    image_shape = (1, 1, 3)
    damaged = None

    def __len__(self) -> int:
        return self.count

    def read_into(self, indices, images, labels, mask=None) -> tuple[()]:
        images[:], labels[:] = 0, indices
        return ()


COUNTS, SEEDS = st.integers(1, 25), st.integers(0, 2**31)
HOSTS, SHARES = (
    st.integers(1, 4),
    st.integers(1, 7),
)  # processes, and how many examples of a batch each reads


def rows_of(hosts: int, share: int) -> list[slice]:
    return [slice(host * share, (host + 1) * share) for host in range(hosts)]


def assert_each_once_an_epoch(labels: np.ndarray, count: int) -> None:
    epochs = labels[: len(labels) // count * count].reshape(-1, count)
    assert len(epochs) >= 2
    np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(count), epochs.shape))


@pytest.mark.commands
@given(count=COUNTS, hosts=HOSTS, share=SHARES, seed=SEEDS)
def test_alexnet_reads_each_example_once_an_epoch(count, hosts, share, seed):
    read_by_one = []
    for step in range(-(-2 * count // (hosts * share))):
        batch = dict(examples=Numbers(count), step=step, batch_size=hosts * share, seed=seed)
        whole = alexnet.data.training_batch(**batch)
        parts = [alexnet.data.training_batch(**batch, rows=rows) for rows in rows_of(hosts, share)]
        for name in whole:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in parts]), whole[name]
            )
        read_by_one.append(whole["label"])
    assert_each_once_an_epoch(np.concatenate(read_by_one), count)


def test_alexnets_threads_read_each_example_once_an_epoch():
    """Two hosts, one with two threads, one with none."""
    count, hosts, share = 23, 2, 3
    read_by = []
    for rows, threads in zip(rows_of(hosts, share), (2, 0), strict=True):
        options = dict(
            first_step=0, batch_size=hosts * share, seed=1, num_threads=threads, rows=rows
        )
        with contextlib.closing(
            alexnet.data.training_batches(Numbers(count), **options)
        ) as batches:
            read_by.append([next(batches)["label"] for _ in range(8)])
    assert_each_once_an_epoch(
        np.concatenate([np.concatenate(parts) for parts in zip(*read_by, strict=True)]), count
    )


@given(
    count=COUNTS,
    hosts=HOSTS,
    share=SHARES,
    seed=SEEDS,
    cuts=st.lists(st.integers(1, 9), min_size=1),
    reshuffle=st.booleans(),
)
def test_lenet_reads_each_example_once_an_epoch(count, hosts, share, seed, cuts, reshuffle):
    """In chunks of any numbers of steps."""
    examples = Examples(
        np.zeros((count, 1, 1, 1), np.uint8), np.arange(count, dtype=np.int32), count, "numbers"
    )
    options = dict(padded_to=9, batch_size=hosts * share, seed=seed, reshuffle=reshuffle, copies=0)
    step, chunks = 0, []
    while step * hosts * share < 2 * count:
        num_steps = cuts[len(chunks) % len(cuts)]
        chunk = dict(first_step=step, num_steps=num_steps, **options)
        whole = lenet.data.training_chunk(examples, **chunk)
        parts = [
            lenet.data.training_chunk(examples, **chunk, rows=rows)
            for rows in rows_of(hosts, share)
        ]
        for name in whole:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in parts], axis=1), whole[name]
            )
        chunks.append(whole["label"][:num_steps].ravel())
        step += num_steps
    assert_each_once_an_epoch(np.concatenate(chunks), count)


@given(count=COUNTS, hosts=HOSTS, share=SHARES)
def test_evaluation_reads_each_example_once(count, hosts, share):
    found = []
    for rows in rows_of(hosts, share):
        for batch in eval_batches(Numbers(count), hosts * share, rows):
            found += batch["label"][batch["mask"]].tolist()
    assert sorted(found) == list(range(count))


# Digests

WIDTHS = {
    np.dtype(dtype).name: np.dtype(f"u{np.dtype(dtype).itemsize}")
    for dtype in (jnp.bfloat16, "f4", "f8", "i4", "u4", "u1")
}


@given(data=st.data(), name=st.sampled_from(sorted(WIDTHS)))
def test_a_single_flipped_bit_changes_the_digest(data, name):
    shape = data.draw(st_numpy.array_shapes(min_dims=0, max_dims=3, max_side=5))
    bits = data.draw(
        st_numpy.arrays(WIDTHS[name], shape)
    )  # NaNs, infinities and zeros of either sign among them
    place = data.draw(st.integers(0, bits.size - 1))
    flipped = bits.copy()
    flipped.reshape(-1)[place] ^= WIDTHS[name].type(
        1 << data.draw(st.integers(0, 8 * bits.itemsize - 1))
    )
    before, after = (
        {"leaf": leaf.view(jnp.dtype(name)), "other": np.arange(3)} for leaf in (bits, flipped)
    )
    assert state_sha256(before) == state_sha256(before | {"leaf": before["leaf"].copy(order="F")})
    assert state_sha256(before) != state_sha256(after)
