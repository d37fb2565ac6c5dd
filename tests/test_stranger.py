"""A run folder from a stranger is read without harm: whatever its checkpoint says, nothing outside
the folder is read, memory stays bounded, and each command answers in one line.

Each demonstration is a folder with a description that matches its own digest, as whoever makes it
would write one.
"""

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorstore as ts
from flax import nnx

import lenet.network
import scripts.checkpoint
import scripts.evaluate
from common import launch
from common.checkpoint import Checkpointer
from common.digests import json_sha256
from common.errors import UserError
from lenet.config import Config
from lenet.network import build_model, given_params

GOLDEN = Path(__file__).parent / "golden" / "lenet_deck"
KERNEL = "params.c5.kernel"  # the largest array
PETABYTES = [5, 5, 16, 2**42]


def describe_as(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes the description, and gives it the digest of what it says now."""
    path = folder / "meta" / "metadata"
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    path.write_text(json.dumps(content | {"sha256": json_sha256(content)}))


def store(folder: Path, key: str, value: bytes, **options) -> None:
    kvstore = {"driver": "ocdbt", "base": f"file://{folder}/state/"} | options
    ts.KvStore.open(kvstore).result().write(key.encode(), value).result()


def change_array(folder: Path, **entries) -> None:
    """Changes what Zarr says of an array."""
    kvstore = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
    zarray = json.loads(kvstore.read(f"{KERNEL}/.zarray".encode()).result().value)
    store(folder, f"{KERNEL}/.zarray", json.dumps(zarray | entries).encode())


def zstd_of_zeros(size: int) -> bytes:
    """A Zstandard frame of `size` zeros, four bytes for each 128 KiB (RFC 8878)."""
    blocks = size // 2**17
    header = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (2**17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x38" + header * (blocks - 1) + last


# ---- the demonstrations: each changes the folder of a good checkpoint; `outside` is beside the run


def name_in_metadata(name: str) -> Callable:
    def change(folder: Path, outside: Path) -> None:
        path = folder / "state" / "_METADATA"
        tree = json.loads(path.read_text())
        tree["use_ocdbt"] = False  # then the names are those of files
        for entry in tree["tree_metadata"].values():
            for part in entry["key_metadata"]:
                if part["key"] == "c5":
                    part["key"] = name.format(outside=outside)
        path.write_text(json.dumps(tree))

    return change


def linked_file(folder: Path, outside: Path) -> None:
    (outside / "manifest.ocdbt").write_bytes((folder / "state" / "manifest.ocdbt").read_bytes())
    (folder / "state" / "manifest.ocdbt").unlink()
    (folder / "state" / "manifest.ocdbt").symlink_to(outside / "manifest.ocdbt")


def linked(name: str) -> Callable:
    def change(folder: Path, outside: Path) -> None:
        where = folder / name
        shutil.move(where, outside / "moved")
        where.symlink_to(outside / "moved")

    return change


def fifo(folder: Path, outside: Path) -> None:
    (folder / "meta" / "metadata").unlink()
    os.mkfifo(folder / "meta" / "metadata")


def petabytes_in_zarray(folder: Path, outside: Path) -> None:
    change_array(folder, shape=PETABYTES, chunks=PETABYTES)


def petabytes_in_one_chunk(folder: Path, outside: Path) -> None:
    change_array(folder, chunks=PETABYTES)


def petabytes_everywhere(folder: Path, outside: Path) -> None:
    """Of many classes: in the description, in its arrays, and in Zarr's."""
    classes = 2**42

    def change(content: dict) -> None:
        content["meta"]["num_classes"] = classes
        for path, entry in content["leaves"].items():
            if "'output'" in path:
                entry[1][-1] = classes

    describe_as(folder, change)
    for name, shape in (("kernel", [84, classes]), ("bias", [classes])):
        kvstore = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
        key = f"params.output.{name}/.zarray".encode()
        zarray = json.loads(kvstore.read(key).result().value)
        kvstore.write(key, json.dumps(zarray | {"shape": shape, "chunks": shape}).encode()).result()


def another_compressor(folder: Path, outside: Path) -> None:
    change_array(folder, compressor={"id": "bz2", "level": 9})


def chunk_of_64_gb(folder: Path, outside: Path) -> None:
    store(folder, f"{KERNEL}/0.0.0.0", zstd_of_zeros(2**36))


def manifest_of_64_gb(folder: Path, outside: Path) -> None:
    """OCDBT's own files are compressed too: magic, length, version, compression, content, CRC."""
    content = b"\x00\x01" + zstd_of_zeros(2**36) + bytes(4)
    header = bytes.fromhex("0cdb3a2a") + (12 + len(content)).to_bytes(8, "little")
    (folder / "state" / "manifest.ocdbt").write_bytes(header + content)


def manifest_elsewhere(prefix: str) -> Callable:
    def change(folder: Path, outside: Path) -> None:
        where = prefix.format(outside=outside)
        state = folder / "state"
        shutil.rmtree(state / "ocdbt.process_0")
        names = {"value_data_prefix": "x" * len(where)}
        store(folder, f"{KERNEL}/0.0.0.0", os.urandom(192_000), **names)
        for path in state.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes().replace(b"x" * len(where), where.encode()))

    return change


def odd_description(**entries) -> Callable:
    return lambda folder, outside: describe_as(folder, lambda content: content.update(entries))


def odd_meta(**entries) -> Callable:
    return lambda folder, outside: describe_as(folder, lambda c: c["meta"].update(entries))


def nested_description(folder: Path, outside: Path) -> None:
    (folder / "meta" / "metadata").write_text("[" * 100_000)


DEMONSTRATIONS = {
    "absolute path": name_in_metadata("{outside}"),
    "path upwards": name_in_metadata("../../../../outside"),
    "link to a file": linked_file,
    "link to the arrays": linked("state"),
    "link to the description": linked("meta"),
    "link to a checkpoint": linked("."),
    "pipe": fifo,
    "shape of petabytes": petabytes_in_zarray,
    "chunk of petabytes": petabytes_in_one_chunk,
    "classes of petabytes": petabytes_everywhere,
    "another compressor": another_compressor,
    "bomb in a chunk": chunk_of_64_gb,
    "bomb in the manifest": manifest_of_64_gb,
    "manifest of absolute paths": manifest_elsewhere("{outside}/"),
    "manifest of paths upwards": manifest_elsewhere("../../../../outside/"),
    "no leaves": odd_description(leaves={}),
    "odd leaves": odd_description(leaves={"\x1b[2Jx": ["float32", [-1, "2"], 7]}),
    "list of leaves": odd_description(leaves=[1, 2]),
    "no meta": odd_description(meta=None),
    "odd classes": odd_meta(num_classes="ten", in_channels=-3),
    "too many classes": odd_meta(num_classes=10**30),
    "nested description": nested_description,
}


# Nothing is wrong with the files themselves.
ONLY_OF_ANOTHER_MODEL = {"odd classes", "too many classes"}


@pytest.fixture
def stranger(tmp_path) -> Callable:
    """stranger(demonstration) -> a run's folder whose only checkpoint is changed like that."""

    def make(name: str) -> Path:
        workdir, outside = tmp_path / "run", tmp_path / "outside"
        shutil.copytree(GOLDEN, workdir)
        outside.mkdir()
        DEMONSTRATIONS[name](workdir / "checkpoints" / "64", outside)
        return workdir

    return make


@pytest.fixture
def little_memory():
    """Whoever allocates gigabytes fails, or is ended by the library's allocator."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_folder_that_the_demonstrations_change_is_good(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "run")
    assert lenet.network.load(tmp_path / "run").step == 64
    with contextlib.closing(Checkpointer(tmp_path / "run", read_only=True)) as checkpointer:
        assert checkpointer.verify(64) is None


@pytest.mark.commands
@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_strangers_checkpoint_is_refused(stranger, name, little_memory, capfd):
    workdir = stranger(name)
    with pytest.raises(UserError) as caught:
        lenet.network.load(workdir)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    assert not capfd.readouterr().err

    target = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: build_model(Config())), nnx.Param))
    with pytest.raises(UserError):
        given_params(Config(init_from=str(workdir)), None, target)

    assert tool("ls", str(workdir)) == 0
    assert tool("verify", str(workdir)) == (0 if name in ONLY_OF_ANOTHER_MODEL else 74)
    printed = capfd.readouterr()
    lines = printed.out.splitlines() + printed.err.splitlines()
    assert all(line.isprintable() for line in lines) and "Traceback" not in printed.err
    assert len(printed.err.splitlines()) == (name not in ONLY_OF_ANOTHER_MODEL)


def tool(*arguments: str) -> int:
    """The exit code of `python -m scripts.checkpoint`, in this process."""
    define, main = scripts.checkpoint.define_flags, scripts.checkpoint.main
    return launch.run_tool(define, main, ["checkpoint", *arguments], words=("ls|verify", "DIR"))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_what_a_link_names_outside_the_folder_is_not_read(tmp_path, name, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    shutil.move(workdir / name, tmp_path / "elsewhere")
    (workdir / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        lenet.network.load(workdir)
    assert tool("ls", str(workdir)) == tool("verify", str(workdir)) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "7", '{"\x1b[2J": 1}', '{"num_epochs": "\x1b"}'])
def test_a_config_that_no_run_writes_is_refused_on_one_line(tmp_path, text):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    (workdir / "config.json").write_text(text)
    assert not scripts.evaluate.is_alexnet(workdir)
    with pytest.raises(UserError) as caught:
        lenet.network.load(workdir)
    assert str(caught.value).isprintable()


def test_names_that_a_terminal_would_obey_are_not_printed(tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(GOLDEN, workdir)
    for name in ("7.corrupt[x]", "8\x1b[2J", "٩", "010"):
        (workdir / "checkpoints" / name).mkdir()
    assert tool("ls", str(workdir)) == 0
    printed = capfd.readouterr()
    assert "corrupt" not in printed.out and "\x1b" not in printed.out and "64" in printed.out
    (workdir / "metrics.jsonl").write_text('{"split": "validation", "step": 1, "loss": "x"}\n')
    assert tool("ls", str(workdir)) == 74
