"""The results of a finished run: `results.json` in its workdir, and the closing table of the console and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.answers.decisions import short_figures
from deit_jax.config import listed_names
from deit_jax.config_model import described_model
from deit_jax.evaluation.accuracy import Scores
from deit_jax.evaluation.heads import answer_of
from deit_jax.evaluation.run import protocol_line
from deit_jax.reporting.run_log import LogError, read_metrics
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import RESULTS, Workdir, WorkdirLike
from deit_jax.training.plan import Plan
from deit_jax.training.wall_time import wall_time_line
from deit_jax.weights.files import EMBEDDED, embedded_card


def finished_results(workdir: WorkdirLike, plan: Plan) -> dict[str, Any] | None:
    """Returns the results of a finished run, else None. Raises UnreadableError as `read_results` does."""
    results = read_results(workdir)
    return results if results is not None and (results["step"] or 0) >= plan.total_steps else None


def read_results(workdir: WorkdirLike, name: str = RESULTS) -> dict[str, Any] | None:
    """Returns the content of `results.json` or, by its name, of `evaluation.json`; None if there is none.

    Raises UnreadableError if the file cannot be read, or if its content is not what this package writes.
    """
    workdir = Workdir.at(workdir)
    results: dict[str, Any] | None = workdir.read_json(name)
    if results is not None and not _are_results(results):
        raise UnreadableError(f"{workdir.address(name)} is damaged (these are not the results of a run)")
    return results


def _are_results(content: Any) -> bool:
    """Whether the content of a file has the parts that `closing_table` and others require."""
    if not isinstance(content, dict) or not {"step", "eval_images", "teacher", "scores"} <= set(content):
        return False
    scores, teacher = content["scores"], content["teacher"]
    return (
        isinstance(content["step"], int | None)
        and isinstance(content["eval_images"], int)
        and (teacher is None or _are_scores(teacher))
        and isinstance(scores, dict)
        and all(map(_are_scores, scores.values()))
    )


def _are_scores(by_head: Any) -> bool:
    return (
        isinstance(by_head, dict)
        and "class" in by_head
        and all(isinstance(score, dict) and "top1" in score for score in by_head.values())
    )


def write_results(workdir: WorkdirLike, results: dict[str, Any]) -> None:
    """Writes `results.json`, which marks the run as finished. Raises LogError if it cannot be written."""
    then = "the last checkpoint is intact, fix that and rerun the command"
    Workdir.at(workdir).write_json(RESULTS, results, error=LogError, then=then)


def skipped_steps(workdir: WorkdirLike) -> int:
    """Returns how many steps of the run were skipped because their loss or gradient was not finite."""
    return sum("nonfinite/loss" in row for row in read_metrics(workdir))


# Counters of results.json, printed if they are not 0.
_INCIDENTS = {
    "unreadable_images": "evaluation image(s) could not be used and are not scored (config.data.on_bad_image)",
    "replaced_images": "time(s) an image was replaced by the next one (config.data.on_bad_image)",
    "skipped_steps": "step(s) were skipped because loss or gradient was not finite (config.on_nonfinite)",
    "rollbacks": "time(s) the run returned to a checkpoint because loss or gradient was not finite (config.on_nonfinite)",
}


def _teacher_row(config: ConfigDict) -> str:
    names = listed_names(config.teacher.name)
    if config.teacher.weights == EMBEDDED:
        return f"teacher {names[0]}, from {embedded_card()['training_images']:,} labelled images"
    return f"teacher {names[0]}" if len(names) == 1 else f"teachers' mean: {', '.join(names)}"


def _recorded_teacher(recorded: Mapping[str, Any] | None) -> list[str]:
    """Returns a note on the teacher whose recorded answers a run has used, which is not scored on the evaluation images."""
    if recorded is None:
        return []
    figures = recorded["decisions"]
    known = "" if figures is None else f", {short_figures(figures)}"
    return [f"recorded teacher: {recorded['teacher'].partition(';')[0]}{known}"]


@dataclasses.dataclass(frozen=True)
class ClosingTable:
    """The scores of a run, formatted: teacher, each head of raw and EMA weights, the configuration's published figures, the same
    for each extra evaluation set; the evaluation protocol; and the counters of faults."""

    title: str
    rows: list[console.Row]
    extra: dict[str, list[console.Row]]
    notes: list[str]
    incidents: list[str]


def closing_table(config: ConfigDict, results: dict[str, Any]) -> ClosingTable:
    """Returns the table for the content of `results.json`, or for the results of `--mode=eval`."""
    rows: list[console.Row] = []
    if results["teacher"] is not None:
        teacher = answer_of(results["teacher"], config.model.fusion)
        rows.append((_teacher_row(config), teacher["top1"], teacher.get("top5"), teacher.get("loss")))
    rows += _rows(results["scores"]) + [(name, top1, None, None) for name, top1 in config.published.items()]
    extra = {
        f"{name}, {scored['images']:,} images{_left_out(scored)}": _rows(scored["scores"])
        for name, scored in results.get("extra", {}).items()
    }
    title = f"{described_model(config)} on {results['eval_images']:,} images"
    notes = _recorded_teacher(results.get("recorded_teacher"))
    notes += [f"protocol {protocol_line(results['protocol'])}"] if "protocol" in results else []
    if "wall_time" in results:
        notes.append(wall_time_line(results["wall_time"]))
    if results["step"] is None:
        notes.insert(0, results["weights"])
    else:
        title += f" after {results['step']:,} steps"
    incidents = [f"{results[name]:,} {what}" for name, what in _INCIDENTS.items() if results.get(name)]
    return ClosingTable(title, rows, extra, notes, incidents)


def _left_out(extra: Mapping[str, Any]) -> str:
    return f", {extra['unreadable']:,} unreadable left out" if extra.get("unreadable") else ""


def show_results(config: ConfigDict, results: dict[str, Any]) -> None:
    """Prints the closing table."""
    table = closing_table(config, results)
    for incident in table.incidents:
        console.say(incident)
    console.summary(table.title, table.rows, table.extra, notes=table.notes)


def _rows(scores: Mapping[str, Scores]) -> list[console.Row]:
    return [
        (f"{weights} weights, {console.HEAD_NAMES[head]}", score["top1"], score.get("top5"), score.get("loss"))
        for weights, by_head in scores.items()
        for head, score in by_head.items()
    ]
