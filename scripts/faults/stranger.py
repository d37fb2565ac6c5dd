"""Checkpoints that a stranger made, to have files read outside the run's folder or to fill the
memory.

Each demonstration is a folder with a description that matches its own digest, as whoever makes it
would write one.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorstore as ts

from common.digests import json_sha256
from common.errors import UserError
from scripts.faults.runs import DIGITS, ROOT, call, refusal, row_of

GOLDEN = ROOT / "tests" / "golden" / "lenet_deck"
KERNEL = "params.c5.kernel"  # the largest array
PETABYTES = [5, 5, 16, 2**42]
LIMITED = ("sh", "-c", 'ulimit -v 8000000; exec timeout 60 "$0" "$@"')  # kB, s


def stranger(full: bool, folder: Path, draw: random.Random) -> Iterator[dict]:
    """Each demonstration with each command that reads checkpoints."""
    found = []
    (probe := folder / "probe" / "outside").mkdir(parents=True)
    paths = forget_reads(probe)
    list(probe.iterdir())
    if not any_read(paths):
        raise UserError("this disk does not tell what was read; set TMPDIR to another folder")
    for name in DEMONSTRATIONS if full else ("link to a checkpoint",):
        (here := folder / name).mkdir()
        workdir = demonstrate(name, here)
        commands = {
            "evaluate": ("scripts.evaluate", f"--workdir={workdir}"),
            "--init_from": (
                *("lenet.train", *DIGITS, "--num_epochs=1", f"--workdir={here / 'new'}"),
                f"--init_from={workdir}",
            ),
            "ls": ("scripts.checkpoint", "ls", str(workdir)),
            "verify": ("scripts.checkpoint", "verify", str(workdir)),
        }
        for command, words in commands.items():
            outside = forget_reads(here / "outside")
            done = call(*words, prefix=LIMITED)
            end = refusal(done)
            if command == "ls" and done.returncode == 0 and not done.stderr:
                end = "shown"
            if any_read(outside):
                end = "read outside the folder"
            found.append((f"{name}, {command}", end))
    target = "one line; nothing read outside the folder"
    yield row_of("a stranger's checkpoint", found, target, ("refused", "shown"))


def demonstrate(name: str, folder: Path) -> Path:
    """The folder of a run in `folder` whose only checkpoint was changed like that; what it points
    to is in `folder/outside`.
    """
    workdir, outside = folder / "run", folder / "outside"
    shutil.copytree(GOLDEN, workdir)
    outside.mkdir()
    DEMONSTRATIONS[name](workdir / "checkpoints" / "64", outside)
    return workdir


def forget_reads(folder: Path) -> list[Path]:
    """The files and folders in `folder`, and itself, for `any_read`."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    for path in paths:
        os.utime(path, (0, path.stat().st_mtime))
    return paths


def any_read(paths: list[Path]) -> bool:
    """Whether one was read since, or listed; on most disks that changes this time."""
    return any(path.stat().st_atime for path in paths)


def describe_as(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes the description, and gives it the digest of what it says now."""
    path = folder / "meta" / "metadata"
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    path.write_text(json.dumps(content | {"sha256": json_sha256(content)}))


def arrays_of(folder: Path, **options) -> ts.KvStore:
    """The keys and values of a checkpoint, which are in OCDBT's files."""
    kvstore = {"driver": "ocdbt", "base": f"file://{folder}/state/"} | options
    return ts.KvStore.open(kvstore).result()


def contents(folder: Path) -> dict[str, bytes]:
    """All keys and values."""
    arrays = arrays_of(folder)
    return {key.decode(): arrays.read(key).result().value for key in arrays.list().result()}


def store(folder: Path, key: str, value: bytes) -> None:
    arrays_of(folder).write(key.encode(), value).result()


def change_array(folder: Path, array: str = KERNEL, **entries) -> None:
    """Changes what Zarr says of an array."""
    zarray = json.loads(contents(folder)[f"{array}/.zarray"])
    store(folder, f"{array}/.zarray", json.dumps(zarray | entries).encode())


def zstd_of_zeros(size: int) -> bytes:
    """A Zstandard frame of `size` zeros, four bytes for each 128 KiB (RFC 8878)."""
    blocks = size // 2**17
    header = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (2**17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x38" + header * (blocks - 1) + last


# ---- the demonstrations: each changes the folder of a good checkpoint; `outside` is beside the run


def name_in_metadata(prefix: str) -> Callable:
    """The largest array is where its name leads."""

    def change(folder: Path, outside: Path) -> None:
        path = folder / "state" / "_METADATA"
        tree = json.loads(path.read_text())
        tree["use_ocdbt"] = False  # then the names are those of files
        for entry in tree["tree_metadata"].values():
            parts = entry["key_metadata"]
            if ".".join(part["key"] for part in parts) == KERNEL:
                parts[0]["key"] = prefix.format(outside=outside) + parts[0]["key"]
        path.write_text(json.dumps(tree))
        (folder / "state" / "_sharding").unlink()  # it has the old name
        for key, value in contents(folder).items():
            place = (outside if key.startswith(f"{KERNEL}/") else folder / "state") / key
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(value)

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
        change_array(folder, f"params.output.{name}", shape=shape, chunks=shape)


def manifest_of_64_gb(folder: Path, outside: Path) -> None:
    """OCDBT's own files are compressed too: magic, length, version, compression, content, CRC."""
    content = b"\x00\x01" + zstd_of_zeros(2**36) + bytes(4)
    header = bytes.fromhex("0cdb3a2a") + (12 + len(content)).to_bytes(8, "little")
    (folder / "state" / "manifest.ocdbt").write_bytes(header + content)


def manifest_elsewhere(prefix: str) -> Callable:
    """All arrays are in a file to which OCDBT's own files lead, with checksums that are right."""

    def change(folder: Path, outside: Path) -> None:
        state, values, where = folder / "state", contents(folder), prefix.format(outside=outside)
        for name in ("d", "ocdbt.process_0"):
            shutil.rmtree(state / name)
        (state / "manifest.ocdbt").unlink()
        mark = "x" * len(where)  # its length is written, too
        arrays = arrays_of(folder, config={"compression": None}, value_data_prefix=mark)
        with ts.Transaction() as transaction:
            for key, value in values.items():
                arrays.with_transaction(transaction)[key.encode()] = value
        (data,) = state.glob(f"{mark}*")
        data.rename(outside / data.name.removeprefix(mark))
        (node,) = (path for path in state.glob("d/*") if mark.encode() in path.read_bytes())
        content = node.read_bytes()[:-4].replace(mark.encode(), where.encode())
        node.write_bytes(content + crc32c(content).to_bytes(4, "little"))

    return change


def crc32c(content: bytes) -> int:
    """The checksum at the end of OCDBT's files (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def odd_array(**entries) -> Callable:
    return lambda folder, outside: change_array(folder, **entries)


def odd_description(**entries) -> Callable:
    return lambda folder, outside: describe_as(folder, lambda content: content.update(entries))


def odd_meta(**entries) -> Callable:
    return lambda folder, outside: describe_as(folder, lambda c: c["meta"].update(entries))


DEMONSTRATIONS = {
    "absolute path": name_in_metadata("{outside}/"),
    "path upwards": name_in_metadata("../../../../outside/"),
    "link to a file": linked_file,
    "link to the arrays": linked("state"),
    "link to the description": linked("meta"),
    "link to a checkpoint": linked("."),
    "pipe": fifo,
    "shape of petabytes": odd_array(shape=PETABYTES, chunks=PETABYTES),
    "chunk of petabytes": odd_array(chunks=PETABYTES),
    "classes of petabytes": petabytes_everywhere,
    "another compressor": odd_array(compressor={"id": "bz2", "level": 9}),
    "bomb in a chunk": lambda at, _: store(at, f"{KERNEL}/0.0.0.0", zstd_of_zeros(2**36)),
    "bomb in the manifest": manifest_of_64_gb,
    "manifest of absolute paths": manifest_elsewhere("{outside}/"),
    "manifest of paths upwards": manifest_elsewhere("../../../../outside/"),
    "no leaves": odd_description(leaves={}),
    "odd leaves": odd_description(leaves={"\x1b[2Jx": ["float32", [-1, "2"], 7]}),
    "list of leaves": odd_description(leaves=[1, 2]),
    "no meta": odd_description(meta=None),
    "odd classes": odd_meta(num_classes="ten", in_channels=-3),
    "too many classes": odd_meta(num_classes=10**30),
    "classes that would take memory": odd_meta(num_classes=10**9, in_channels=10**9),
    "class names that are no text": odd_meta(class_names=["\ud800"] * 10),
    "class names that are none": odd_meta(class_names=5),
    "settings that are none": odd_meta(settings=[]),
    "nested description": lambda at, _: (at / "meta" / "metadata").write_text("[" * 100_000),
}
