"""Which S2 maps each of the 16 C3 maps sees (Table I of the paper)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

# Table I: the S2 maps that each of the 16 C3 maps sees. Every S2 map feeds exactly ten C3 maps.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)


def c3_connections(c3: str, seed: int = 0) -> Sequence[Sequence[int]]:
    """For each of the 16 C3 maps, the S2 maps that it sees.

    'table': Table I, 1,516 parameters in C3. 'dense': all six, 2,416 parameters. 'random': as many
    inputs per map as in Table I, 1,516 parameters, drawn from `seed`.
    """
    if c3 == "dense":
        return [range(6)] * 16
    if c3 == "random":
        # NumPy promises that raw Philox output never changes; checkpoints depend on it.
        draws = np.random.Philox(np.random.SeedSequence(seed)).random_raw(16 * 6).reshape(16, 6)
        return [
            sorted(draw.argsort()[: len(inputs)].tolist())
            for draw, inputs in zip(draws, C3_TABLE, strict=True)
        ]
    return C3_TABLE


def c3_mask(connections: Sequence[Sequence[int]]) -> Float32[np.ndarray, "5 5 6 maps"]:
    """1 where a weight of the C3 kernel exists, 0 elsewhere."""
    mask = np.zeros((5, 5, 6, len(connections)), np.float32)
    for feature_map, inputs in enumerate(connections):
        mask[:, :, list(inputs), feature_map] = 1
    return mask
