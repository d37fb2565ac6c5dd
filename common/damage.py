"""How many damaged records a run has met, and whether it may go on."""

import json
import sys
from collections.abc import Iterable, Sequence

from common import processes
from common.data import Damage
from common.errors import DataError


class DamagedRecords:
    """The damaged records that a run has met, each counted once, however often it comes and whoever
    reads it.

    Args:
      dataset: the set's name, for messages.
      allowed: how many there may be; 0: none, and they are errors where they are read.
    """

    def __init__(self, dataset: str, allowed: int):
        self.dataset, self.allowed = dataset, allowed
        self._found: dict[tuple[str, str, int], Damage] = {}

    @property
    def count(self) -> int:
        """How many there are so far."""
        return len(self._found)

    @property
    def listed(self) -> list[list]:
        """What to save with a checkpoint, and to give to `add` after a resume."""
        return [list(damage) for damage in sorted(self._found.values())]

    def add(self, found: Iterable[Sequence], consequence: str = "") -> None:
        """Counts those that are new, each with a line on stderr, which ends in the `consequence`;
        without one there is none.

        Raises:
          DataError: there are more than allowed; the message has them all.
        """
        for damage in (Damage(*each) for each in found):
            if damage[:3] not in self._found:
                self._found[damage[:3]] = damage
                if consequence and processes.is_first_process():
                    print(
                        f"damaged data in {self.dataset}, {damage}: {consequence}",
                        file=sys.stderr,
                        flush=True,
                    )
        if self.count > self.allowed:
            listed = "; ".join(str(damage) for damage in sorted(self._found.values()))
            raise DataError(
                f"{self.dataset} has more damaged records than --max_bad_records={self.allowed}: {listed}. Restore the files, "
                "prepare the set again, or allow more; the same command resumes"
            )

    def agree(self) -> None:
        """Brings together what several processes have met. All call it at the same place. Raises
        DataError as `add`.
        """
        if self.allowed:
            for text in processes.all_gather_text(json.dumps(self.listed)):
                self.add(json.loads(text), "it is left out")
