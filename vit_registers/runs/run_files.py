"""The files of a run folder beside its checkpoints: settings, metrics and result."""

from typing import Any

from etils import epath

from vit_registers.config import Model
from vit_registers.data.tokenizers.base import Tokenizer
from vit_registers.errors import TrainingError
from vit_registers.runs import results
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.loop import Loop
from vit_registers.runs.mask_file import write_mask_file
from vit_registers.runs.metrics_log import FILE, read_records
from vit_registers.runs.tokenizer_file import write_tokenizer
from vit_registers.runs.trackers import Background
from vit_registers.runs.writers import MetricWriter, write_parameter_overview
from vit_registers.status import say
from vit_registers.storage import files
from vit_registers.training.durations import Durations
from vit_registers.training.setup import Setup
from vit_registers.training.state import TrainState


def write_about(
    settings: dict[str, Any],
    model: Model,
    setup: Setup,
    run: epath.Path,
    *,
    tokenizer: Tokenizer | None,
    is_resumed: bool,
    is_finished: bool,
) -> None:
    """Writes `settings` as config.json, parameters.txt, the mask's file and the tokenizer.

    Raises TrainingError if a write fails, ConfigError if a run is resumed with another tokenizer.
    """
    try:
        write_tokenizer(tokenizer, run, is_resumed=is_resumed)
        if not is_finished:
            files.remove_file(run / results.FILE)  # its checkpoints were removed
        files.write_json(run / "config.json", settings)
        write_mask_file(model, run)
        write_parameter_overview(setup.abstract.params, run / "parameters.txt")
    except OSError as error:
        path = error.filename2 or error.filename or run
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from error


def open_writer(
    run: epath.Path,
    checkpoints: Checkpoints,
    durations: Durations,
    evaluators: list[str],
    *,
    use_tensorboard: bool,
    trackers: list[Background],
) -> MetricWriter:
    """The writer of RUN/metrics.jsonl, of TensorBoard's files and of the trackers.

    If the file lacks evaluations up to the restored step, those that checkpoints store are added. A line
    names their steps, and the steps of those that are lost.
    """
    step = checkpoints.restorable_step or 0
    restored, lost = results.complete_evaluations(
        read_records(run).records,
        evaluators=evaluators,
        steps=durations.evaluations_until(step),
        known=checkpoints.evaluations,
    )
    if restored or lost:
        found = [record["step"] for record in restored if record["step"] not in lost]
        parts = [f"missing: those of steps {_listed(lost)}"] if lost else []
        parts += [f"taken from checkpoints: those of steps {_listed(found)}"] if found else []
        say(f"{run / FILE} lacks evaluations of the steps up to {step}; {'; '.join(parts)}")
    return MetricWriter(
        run,
        start_step=step,
        use_tensorboard=use_tensorboard,
        restored=restored,
        trackers=trackers,
    )


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:20]))
    return shown if len(steps) <= 20 else f"{shown} and {len(steps) - 20} more"


def write_finished(
    run: epath.Path, loop: Loop, setup: Setup, state: TrainState, made: dict[str, Any]
) -> None:
    """Writes RUN/result.json after the last step; `made` is from results.made_with()."""
    loop.checkpoints.check_folder()
    results.write_result(
        run,
        evaluators=[*loop.evaluators],
        total_steps=loop.durations.total_steps,
        params=state.params,
        best=setup.objective.best,
        made=made,
        steps=loop.durations.evaluations_until(loop.durations.total_steps),
        known=loop.checkpoints.evaluations,
    )
