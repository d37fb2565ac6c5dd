"""Writes a data set as a TFDS array_record folder, without TensorFlow: downloads it, or converts
ImageNet from local files.

    python -m scripts.prepare_data --dataset=mnist [--data_dir=DIR]
    python -m scripts.prepare_data --dataset=qmnist --source=DIR [--data_dir=DIR]
    python -m scripts.prepare_data --dataset=imagenet_256 --source=DIR [--data_dir=DIR]

Downloads are verified by their published SHA-256; an interrupted run resumes where it stopped; the
folder appears only when it is complete. For qmnist, DIR has qmnist-test-images-idx3-ubyte.gz and
qmnist-test-labels-idx2-int.gz; the splits are test (10,000 digits, MNIST's) and test50k (the lost
ones), and train if DIR has QMNIST's or MNIST's training files too. For imagenet_256, DIR has
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or train/<class>/ and val/<class>/ with JPEG or
PNG files, or <class>/ alone; a tar file of such folders works too. Each image is rescaled to 256
pixels on its shorter side and cropped to the center. Corrupt files are printed, listed in
damaged.txt and left out. All of ImageNet takes about 45 GB, 260 GB with --record_format=raw.

Exit codes: 0 prepared (now or before), 2 wrong flags or a killed worker process, 65 wrong or
corrupt files, 74 no network or a folder that cannot be written, 75 another process is preparing the
same set, 130 interrupted.
"""

import os
import sys
from pathlib import Path

from absl import flags

from common import launch
from common.errors import StorageError, UserError
from common.prepared import data_dirs
from scripts.prepare import imagenet, qmnist
from scripts.prepare.encode import RECORD_FORMATS
from scripts.prepare.layouts import find_images
from scripts.prepare.progress import ShardProgress
from scripts.prepare.published import PUBLISHED_SETS, prepare_published

DATASETS = ("mnist10k", *PUBLISHED_SETS, qmnist.NAME, imagenet.NAME)


def main(argv: list[str]) -> int:
    """Runs the command with the arguments after the program's name; returns its exit code."""
    return launch.run_tool(define_flags, prepare, ["prepare_data", *argv])


def define_flags(flag_values: flags.FlagValues) -> None:
    def define(definer, *arguments, **options) -> None:
        definer(*arguments, flag_values=flag_values, **options)

    define(flags.DEFINE_string, "dataset", "mnist", f"The data set: {', '.join(DATASETS)}.")
    data_dir = "Where to write it; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
    define(flags.DEFINE_string, "data_dir", "", data_dir)
    source = "A folder with the downloaded files, under their official names; imagenet_256: above."
    define(flags.DEFINE_string, "source", "", source)
    mirror = "The URL of another server's folder with the same files."
    define(flags.DEFINE_string, "mirror", "", mirror)
    record_format = "imagenet_256: JPEG of quality 95, or uncompressed pixels, which load faster."
    define(flags.DEFINE_enum, "record_format", RECORD_FORMATS[0], RECORD_FORMATS, record_format)
    num_workers = "imagenet_256: worker processes; 0: one per core."
    define(flags.DEFINE_integer, "num_workers", 0, num_workers, lower_bound=0)


def prepare(flag_values: flags.FlagValues) -> None:
    """Prepares the set that the flags name."""
    dataset, mirror = flag_values.dataset, flag_values.mirror
    if dataset not in DATASETS:
        raise UserError(f"--dataset={dataset} is unknown; allowed: {', '.join(DATASETS)}")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise UserError(f"--mirror={mirror} is not a URL; it must begin with http:// or https://")
    inapplicable = ["mirror"] if dataset in (imagenet.NAME, qmnist.NAME) else []
    inapplicable += ["record_format", "num_workers"] if dataset != imagenet.NAME else []
    for name in inapplicable:
        if flag_values[name].present:
            raise UserError(f"--{name} does not apply to --dataset={dataset}")
    data_dir = data_dirs(flag_values.data_dir)[0]
    if dataset == "mnist10k":
        print("mnist10k is embedded in the project: nothing to prepare")
    elif dataset == imagenet.NAME:
        prepare_imagenet(
            data_dir, flag_values.source, flag_values.record_format, flag_values.num_workers
        )
    elif dataset == qmnist.NAME:
        qmnist.prepare_qmnist(data_dir, flag_values.source)
    else:
        prepare_published(dataset, data_dir, flag_values.source, mirror)


def prepare_imagenet(data_dir: Path, source: str, record_format: str, num_workers: int = 0) -> Path:
    """Prepares ImageNet, or another class-per-folder tree, in `<data_dir>/imagenet_256/1.0.0/`,
    unless it is there already; returns that folder.

    Args:
      data_dir: created if needed.
      source: see `layouts.find_images`.
      record_format: `jpeg` or `raw`.
      num_workers: processes; 0 for one per core.

    Raises:
      DataError, LockedError, StorageError: see `layouts.find_images` and `imagenet.prepare`.
      UserError: no source.
    """
    prepared = data_dir / imagenet.NAME / imagenet.VERSION
    if not source and (prepared / "dataset_info.json").is_file():
        print(f"{imagenet.NAME} is already prepared in {prepared}")
        return prepared
    if not source:
        raise UserError(
            f"--dataset={imagenet.NAME} needs --source=DIR: "
            "downloading ImageNet takes an account at image-net.org"
        )
    found = find_images(source)
    sizes = ", ".join(f"{len(files):,} files of {split}" for split, files in found.splits.items())
    print(f"{source}: {sizes}, {len(found.class_names):,} classes", flush=True)
    if found.left_out:
        print(f"other files, left out: {len(found.left_out):,}, such as {found.left_out[0]}")
    num_workers = num_workers or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    try:
        with ShardProgress(sum(map(len, found.splits.values()))) as progress:
            shards = imagenet.prepare(found, prepared, record_format, num_workers, progress)
    except OSError as error:
        raise StorageError(
            f"cannot write to {data_dir} ({error}); choose another folder with --data_dir"
        ) from error
    if not shards:
        print(f"{imagenet.NAME} is already prepared in {prepared}")
        return prepared
    counts = dict.fromkeys(found.splits, 0)
    for shard in shards:
        counts[shard.split] += shard.count
    sizes = ", ".join(f"{count:,} images in {split}" for split, count in counts.items())
    num_damaged = sum(len(shard.damaged) for shard in shards)
    listed = f", listed in {prepared / 'damaged.txt'}" if num_damaged else ""
    print(
        f"{imagenet.NAME} is ready: {sizes}, corrupt files: {num_damaged:,}{listed}; "
        f"--dataset={imagenet.NAME} --data_dir={data_dir}"
    )
    return prepared


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
