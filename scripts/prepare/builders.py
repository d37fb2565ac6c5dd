"""Writes labeled images as TFDS does, without TensorFlow: an array_record folder that the project's
readers and `tfds.data_source` read.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from common.errors import DataError
from scripts.prepare.encode import encode_png


def write_prepared(
    data_dir: str | Path,
    dataset: str,
    version: str,
    splits: Mapping[str, Iterable[tuple[np.ndarray | bytes, int]]],
    image_shape: tuple[int | None, int | None, int],
    class_names: Iterable[str],
    *,
    keep_order: bool,
    description: str = "",
    homepage: str = "",
) -> Path:
    """Writes `<data_dir>/<dataset>/<version>/` in TFDS's array_record format, atomically.

    Args:
      data_dir: created if needed.
      dataset: `name` or `name/config`.
      version: such as `1.0.0`.
      splits: split name -> (image, label) pairs, such as `zip(images, labels)` of (N, H, W, C)
        uint8 and (N,) integers. An image is a uint8 array, stored as PNG, or the bytes of a PNG or
        JPEG file, stored unchanged.
      image_shape: (H, W, C); H and W may be None if they vary.
      class_names: one per class, in label order.
      keep_order: True stores the records in the given order; False in the order of TFDS's official
        builders, so that record i of our `mnist` is record i of theirs and a slice such as
        `train[:100]` is a random sample.
      description, homepage: for dataset_info.json.

    Returns:
      The folder. An existing one is left unchanged.

    Raises:
      DataError: a label is out of range.
    """
    builder = _Builder(
        data_dir,
        dataset,
        version,
        splits=splits,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=image_shape),
                "label": tfds.features.ClassLabel(names=list(class_names)),
            }
        ),
        disable_shuffling=keep_order,
        description=description,
        homepage=homepage,
    )
    tfds.disable_progress_bar()  # TFDS would report downloads, and there are none
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as unused_download_dir,
    ):
        builder.download_and_prepare(file_format="array_record", download_dir=unused_download_dir)
    return Path(builder.data_dir)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    # One class for all sets, named per instance and not registered: a registered class `Mnist`
    # would break tfds.data_source("mnist").

    # TFDS writes this name to dataset_info.json, whose bytes stay those of sets prepared before.
    __module__ = "common.builders"

    def __init__(self, data_dir, dataset, version, *, splits, features, **info):
        self.name, _, config = dataset.partition("/")
        self.VERSION = tfds.core.Version(version)
        self.BUILDER_CONFIGS = (
            [tfds.core.BuilderConfig(name=config, version=version)] if config else []
        )
        self._splits, self._features, self._info_fields = splits, features, info
        super().__init__(data_dir=data_dir, config=self.BUILDER_CONFIGS[0] if config else None)

    def _info(self):
        info = tfds.core.DatasetInfo(
            builder=self,
            features=self._features,
            supervised_keys=("image", "label"),
            **self._info_fields,
        )
        # TFDS's own would leave an empty folder in the system's temporary one.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, pairs) for split, pairs in self._splits.items()
        }

    def _generate_examples(self, split, pairs):
        num_classes = self._features["label"].num_classes
        for index, (image, label) in enumerate(pairs):
            if not 0 <= label < num_classes:
                raise DataError(
                    f"{self.name}, split {split}, example {index}: label {label} is out of range "
                    f"(0 to {num_classes - 1})"
                )
            # TFDS would encode an array with TensorFlow.
            content = image if isinstance(image, bytes) else encode_png(image)
            yield index, {"image": io.BytesIO(content), "label": int(label)}
