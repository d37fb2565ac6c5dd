"""Labeled noise in place of images, for timings and first tries without a data set."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Noise:
    """Example i is a pure function of (seed, i).

    Attributes:
      numbers: i of each example.
      image_shape: (H, W, 3).
      seed: non-negative.
    """

    numbers: range
    image_shape: tuple[int, int, int]
    seed: int
    num_classes: int = 1000
    name: str = "fake"
    class_names: tuple[str, ...] | None = None
    damaged = None  # as in common.records.Records: noise is never damaged

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, selection: slice) -> "Noise":
        """The selected examples."""
        return dataclasses.replace(self, numbers=self.numbers[selection])

    def fingerprint(self) -> dict:
        """What tells this training set from another, as JSON: its length."""
        return {"train_examples": len(self)}

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `indices` (n,): images (n, H, W, 3) uint8, uniform in 0 to 255, and
        labels (n,) int32.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        self.read_into(indices, images, labels)
        return images, labels

    def read_into(self, indices, images, labels, mask=None) -> tuple[()]:
        """Draws the examples at `indices`; same arguments as `Records.read_into`."""
        for place, index in enumerate(indices):
            sequence = np.random.SeedSequence(self.seed, spawn_key=(self.numbers[index],))
            random = np.random.Philox(sequence)
            labels[place] = random.random_raw() % self.num_classes
            words = random.random_raw(-(-images[place].size // 8))  # uint64: eight pixels each
            images[place] = words.view(np.uint8)[: images[place].size].reshape(self.image_shape)
        return ()
