"""The training loop of both networks, read from top to bottom."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from common import stopping
from common.checkpoint import Checkpointer
from common.digests import state_sha256
from common.errors import Interrupted
from common.evaluation import evaluate
from common.flags import settings_of
from common.metrics import is_chance, scores_of, summarize
from common.network import Network
from common.parallel import Placement
from common.start_up import remarks, restore_or_start, start_up_lines
from common.transfer import table
from common.workdir import best_of, saved_steps
from common.writer import Writer


class Task(NamedTuple):
    """One training, as values and functions that `fit` calls in order.

    A state is a NamedTuple with `params` and `average`: {layer: {parameter: array}}, or () for no
    average. A chunk is the batches of `count` consecutive steps of one epoch.

    Attributes:
      network: what the config describes; `fit` reads the settings that both networks have.
      log_every_steps: a line of metrics after so many steps, and at the end of each epoch.
      save_every_steps: a checkpoint after so many steps as well; 0: at the ends of epochs alone.
      placement: where everything lies.
      initial_state: params -> the state before the first update; traced.
      given_params: (their shapes) -> (the params of layers that do not start anew, what to say of
        all layers in the result, or None).
      chunks: (first step) -> (count, chunk) without end; closed at the end.
      train: (state, chunk, count) -> (state, sums {"loss", "errors", "count"}); donates the state.
      before_epoch: (state, epoch from 0) -> the state that the epoch starts with.
      after_epoch: (state, metrics of the tracked split, say) -> the state that training goes on
        with; `say` prints a line.
      eval_step: (params, batch) -> sums; compiled by `placement`.
      eval_batch_size: examples of one device in a batch of evaluation.
      num_threads: that read the examples of an evaluation.
      splits: "train", "validation" and "test" examples, scored at the end.
      more_scores: (metrics of the test split, score(examples, eval_step, batch size) -> sums) ->
        more entries of the result.
      facts: what `load` must know of the data, saved with each checkpoint.
      training_set: "train_examples", and what else tells one training set from another; compared
        after a restore.
      restored: (state, meta) after a restore; raises where they do not fit the data.
      notes: () -> more to save with a checkpoint.
      learning_rate: step -> rate, to be shown; None where it depends on the errors.
      chance_loss, hint: the loss of guessing, and what to say where training stays there.
      remarks: more lines to print at the start.
    """

    network: Network
    log_every_steps: int
    save_every_steps: int
    placement: Placement
    initial_state: Callable[[Any], Any]
    given_params: Callable[[Any], tuple[dict, dict | None]]
    chunks: Callable[[int], Iterator[tuple[int, Any]]]
    train: Callable
    eval_step: Callable
    eval_batch_size: int
    num_threads: int
    splits: dict[str, Any]
    facts: dict[str, Any]
    training_set: dict[str, Any]
    before_epoch: Callable = lambda state, epoch: state
    after_epoch: Callable = lambda state, scores, say: state
    more_scores: Callable[[dict, Callable], dict] = lambda test_scores, score: {}
    restored: Callable[[Any, dict], None] = lambda state, meta: None
    notes: Callable[[], dict] = lambda: {}
    learning_rate: Callable[[int], float] | None = None
    chance_loss: float | None = None
    hint: str = ""
    remarks: Sequence[str] = ()

    @property
    def config(self) -> Any:
        """The run's settings."""
        return self.network.config

    @property
    def epoch_steps(self) -> int:
        """Updates in an epoch: full batches."""
        return self.training_set["train_examples"] // self.config.batch_size

    @property
    def num_steps(self) -> int:
        """Updates in the run."""
        return self.config.num_epochs * self.epoch_steps

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`, whatever interrupts the run."""
        every = self.config.save_every_epochs * self.epoch_steps, self.save_every_steps
        return step == self.num_steps or any(steps and step % steps == 0 for steps in every)


def fit(task: Task, workdir: Path, stop_requested: Callable[[], int | None]) -> dict:
    """Trains from the newest checkpoint, or from the start, to the end.

    Args:
      workdir: the run's folder, which is this process's alone.
      stop_requested: None, or the number of a signal: then the state is saved.

    Returns:
      The metrics of result.json.

    Raises:
      Interrupted: a signal came; the state is saved.
      DataError: the checkpoint is of another training set.
      NonFiniteError, StorageError: as `Writer` and `Checkpointer` raise them.
    """
    config, placement, splits = task.config, task.placement, task.splits
    stopped_by = None  # the split whose error ended the run early

    def score(examples, eval_step=task.eval_step, batch_size=task.eval_batch_size) -> dict:
        return evaluate(
            eval_step,
            evaluated_params(placement.replicate(state)),
            examples,
            batch_size=batch_size,
            placement=placement,
            num_threads=task.num_threads,
            stop_requested=stop_requested,
        )

    with contextlib.closing(Checkpointer(workdir, config.keep)) as checkpointer:
        step, state, meta = restore_or_start(task, checkpointer, workdir)
        transfer = {"transfer": meta["transfer"]} if meta.get("transfer") else {}
        unlogged = meta.get("unlogged", [])  # sums of the steps since the last line of metrics
        log = Writer(
            workdir,
            first_step=step,
            num_steps=task.num_steps,
            steps_per_epoch=task.epoch_steps,
            before=meta.get("totals"),
            chance_loss=task.chance_loss,
            hint=task.hint,
            learning_rate=task.learning_rate,
        )

        def save() -> None:
            log.flush()
            notes = {"totals": log.totals, "unlogged": [numbers(sums) for sums in unlogged]}
            notes |= task.notes() | task.facts | task.training_set | settings_of(config) | transfer
            checkpointer.save(step, placement.replicate(state), notes, errors_of_saved())

        def errors_of_saved() -> dict[int, float]:
            """Step -> validation error, without what a signal alone saved."""
            errors = log.validation_errors.items()
            return {s: error for s, error in errors if s == step or task.saves_after(s)}

        def end_epoch() -> bool:
            """Scores the epoch, after it was saved if due; returns whether it is the last."""
            nonlocal state, stopped_by
            log.flush()
            sums = score(splits[config.track])
            log.write(step, config.track, sums)
            scores = summarize(sums)
            errors = {"train": log.epoch_error_pct, config.track: scores["error_pct"]}
            stopped_by = stopping.met(config, errors)
            if stopped_by or step == task.num_steps:
                save()  # no matter how often epochs are saved
                return True
            state = task.after_epoch(state, scores, log.say)
            return False

        with log, contextlib.closing(task.chunks(step)) as chunks:
            lines = [*start_up_lines(task, step), *remarks(task)]
            log.say("\n".join(lines + table(meta.get("transfer"), task.network)))
            try:
                sums = ()
                finished = step > 0 and step % task.epoch_steps == 0 and end_epoch()
                while not finished:
                    if step % task.epoch_steps == 0:
                        state = task.before_epoch(state, step // task.epoch_steps)
                    count, chunk = next(chunks)
                    before, (state, sums) = sums, task.train(state, chunk, count)
                    jax.block_until_ready(before)  # one chunk at work, none in the queue
                    step += count
                    unlogged.append(sums)
                    end_of_epoch = step % task.epoch_steps == 0
                    if step % task.log_every_steps == 0 or end_of_epoch:
                        log.write(step, "train", jax.tree.map(lambda *parts: parts, *unlogged))
                        unlogged = []
                    if stop_signal := stop_requested():
                        raise Interrupted(stop_signal)
                    if task.saves_after(step):
                        save()
                    finished = end_of_epoch and end_epoch()
            except Interrupted:
                save()
                raise
            if stopped_by:
                log.say(f"stopped after epoch {step // task.epoch_steps}: {stopping.until(config)}")
            log.say("scoring the training, validation and test examples")

    names, errors = task.facts.get("class_names"), errors_of_saved()
    best = best_of(errors, saved_steps(workdir))
    # The final scores; unless --track=test, the test split was not looked at before.
    scores = {"test": scores_of(on_test := score(splits["test"]), "test")}
    for split in ("train", "validation"):
        if len(splits[split]):
            scores[split] = scores_of(score(splits[split]), split)
    return {
        **{f"{split}_error_pct": each["error_pct"] for split, each in scores.items()},
        **task.more_scores(scores["test"], score),
        "num_test_examples": int(on_test["count"]),
        "num_train_examples": task.training_set["train_examples"],
        "training_set": task.training_set,
        "tracked": config.track,
        **({} if best is None else {"best_step": best, "best_validation_error_pct": errors[best]}),
        **({"is_chance": True} if is_chance(on_test, task.network.num_classes) else {}),
        **({"confusion_matrix": on_test["confusion"]} if "confusion" in on_test else {}),
        **({"class_names": names} if "confusion" in on_test and names else {}),
        **stopping.entries(config, stopped_by, step // task.epoch_steps),
        **transfer,
        "num_steps": step,
        "state_sha256": state_sha256(placement.replicate(state)),
        "images_per_s": log.images_per_s,
        "wall_time_s": log.seconds,
    }


def evaluated_params(state) -> Any:
    """The weights that evaluation uses: their average where there is one."""
    return state.average if state.average != () else state.params


def numbers(sums: dict) -> dict[str, float | int]:
    """Sums as JSON has them."""
    return {name: np.asarray(value).item() for name, value in sums.items()}
