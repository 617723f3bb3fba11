"""The training loop: `train`, then the rules for the order of its steps, then the steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from deit_jax import console
from deit_jax.config import needs_logits
from deit_jax.data.bad_images import BadImages
from deit_jax.data.reading_speed import ReadingSpeed
from deit_jax.errors import Stopped
from deit_jax.evaluation.accuracy import Scores, as_row, best_top1
from deit_jax.evaluation.run import Evaluator, protocol_of, score_extra_sets
from deit_jax.parallel.distributed import (
    compiled_together,
    from_main_process,
    is_main_process,
    sum_over_processes,
    wait_for_all,
)
from deit_jax.parallel.sharding import replicated
from deit_jax.reporting.profile import Profile
from deit_jax.reporting.run_log import RunLog
from deit_jax.reporting.speed import Speed
from deit_jax.storage.workdir import TENSORBOARD, Workdir, WorkdirLike
from deit_jax.training.announcement import describe
from deit_jax.training.answering import RecordedTeacher, Recorder, Replay, answering_of, recording_of
from deit_jax.training.checkpoint_folder import CheckpointError, last_step
from deit_jax.training.checkpointing import Checkpoints
from deit_jax.training.divergence import Detours, Rollback, Watch
from deit_jax.training.feed import Feed
from deit_jax.training.host_speeds import HostSpeeds, compare_with_need, described_need, needed_images_per_second
from deit_jax.training.interruption import Interruption
from deit_jax.training.late_metrics import LateMetrics
from deit_jax.training.lock import hold
from deit_jax.training.losses import Metrics
from deit_jax.training.network_identity import check_teacher
from deit_jax.training.optimizer import parameter_names
from deit_jax.training.plan import Plan
from deit_jax.training.preparation import (
    Built,
    Opened,
    build_run,
    claim,
    finished_run,
    open_run,
    refuse_later_step,
    scored_by,
    speed_of,
)
from deit_jax.training.program import Initial, Program
from deit_jax.training.recorded_answers import check_answers, recorded_teacher
from deit_jax.training.results import show_results, skipped_steps, write_results
from deit_jax.training.state import TrainState
from deit_jax.training.teacher import FrozenTeacher, Teacher, score_teacher
from deit_jax.training.wall_time import WallTime

Results = dict[str, Any]


def train(
    config: ConfigDict,
    workdir: WorkdirLike,
    teacher: Teacher | None = None,
    initial: Initial | None = None,
    log: RunLog | None = None,
    opened: Opened | None = None,
    wall_time: WallTime | None = None,
) -> Results:
    """Trains the configured model in `workdir`, or resumes an earlier run; returns the content of `results.json`.

    config: validated. teacher: the frozen teacher, with as many classes as the student; None: no teacher.
    initial: the weights of config.model.weights, for a run without a checkpoint; None: random weights.
    log: for a caller that logs more afterwards; None: a new log. opened: the result of `open_run` for the same arguments.
    wall_time: counts from an earlier moment; None: from now on.

    Raises ConfigError, DataError, WorkdirError or CheckpointError before anything is compiled; later also DivergenceError,
    LogError and, after a signal, Stopped.
    """
    # --- Prepare: check everything that can fail; write nothing ------------------------------------------------------------
    workdir = Workdir.at(workdir)
    wall_time = wall_time or WallTime(workdir, write=is_main_process())
    opened = opened or open_run(config, workdir)
    config = opened.config
    if log is None:
        with RunLog(config, workdir, silent=not is_main_process()) as log:
            return train(config, workdir, teacher, initial, log, opened, wall_time)
    built = build_run(config, opened, teacher)
    answers = check_answers(workdir, opened.record, None if built.answers is None else built.answers[1])
    recording = recording_of(opened, built, teacher)
    networks, on_change = () if teacher is None else teacher.networks, config.teacher.on_change
    teachers = check_teacher(workdir, opened.record, networks, on_change=on_change, step=last_step(workdir) or 0)

    # --- Claim the workdir -------------------------------------------------------------------------------------------------
    with hold(workdir), log.kept():
        # Again, since another run may have trained here meanwhile, e.g. while the teacher was loaded.
        refuse_later_step(workdir, opened.plan)
        if (results := finished_run(config, workdir, opened, locked=True)) is not None:
            return results
        claim(workdir, opened, teachers, initial, answers, built.program.attention and built.program.attention.name)
        console.announce(f"Training in {workdir}", facts_of(opened, built, teacher, initial))
        checkpointing = Checkpoints(workdir, keep=config.checkpoint.keep, scored_by=scored_by(opened))
        with checkpointing as checkpoints, answering_of(opened, built, recording) as answering:
            frozen = frozen_on_mesh(built, teacher, recording)
            teacher_scores = scores_of_teacher(workdir, opened, built, teacher, frozen)

            # --- Run the steps, from the newest checkpoint ---------------------------------------------------------------------
            run = Run(
                workdir=workdir,
                opened=opened,
                built=built,
                teacher=frozen,
                initial=initial,
                speed=speed_of(opened, built, teacher),
                checkpoints=checkpoints,
                log=log,
                wall_time=wall_time,
                answering=answering,
            )
            done = run_to_the_end(run)

            # --- Write the results, once the last checkpoint is complete (rule 4) ----------------------------------------------
            wall_time.enter("save")
            checkpoints.wait()
        results = results_of(run, done, teacher_scores)
        if is_main_process():
            write_results(workdir, results)
            log.finish(results)
        wait_for_all("the results are written")
        show_results(config, results)
        return results


@dataclasses.dataclass(frozen=True)
class Run:
    """The inputs of the steps, built by `train`."""

    workdir: Workdir
    opened: Opened
    built: Built
    teacher: FrozenTeacher | None  # on the mesh
    initial: Initial | None
    speed: Speed
    checkpoints: Checkpoints
    log: RunLog
    wall_time: WallTime
    answering: Replay | Recorder | None = None  # None: the teacher, if any, is a part of the train step

    @property
    def config(self) -> ConfigDict:
        return self.opened.config

    @property
    def plan(self) -> Plan:
        return self.opened.plan

    @property
    def program(self) -> Program:
        return self.built.program

    @property
    def evaluator(self) -> Evaluator:
        return self.built.evaluator


@dataclasses.dataclass(frozen=True)
class Done:
    """The results of the steps."""

    state: TrainState
    scores: dict[str, Scores] | None  # the last state's, by weights and head; None if no step remained
    seconds_per_step: float | None  # None if no step was timed
    replaced: int  # unreadable images, over all starts of the run and all processes
    rollbacks: int


# Rules for the order of the steps. They imply the guarantees in docs/reliability.md; `late_metrics.py` and the tests refer
# to them by number. docs/design.md lists where resuming is decided.
#
#  1. Judged before used. A state is evaluated or saved only after every step up to it has been judged (`Watch.read`).
#     Otherwise a checkpoint could contain non-finite values, and a rollback would return to them.
#  2. Logged before saved. All rows up to a checkpoint's step are written and synced before its save begins: the row of
#     the step itself, which is written late, those of skipped steps, and the evaluation's. A resumed run drops the rows
#     of later steps and rewrites only those.
#  3. Evaluated before saved, saved before stopped. A resumed run starts after the checkpoint's step, and never
#     evaluates that step.
#  4. Complete before relied on. Only after `Checkpoints.wait` does a run report that it has stopped, return to its last
#     checkpoint, or write `results.json`.
#  5. Recorded before used. A rollback is in `rollbacks.json` before the first step that uses other data.
#  6. Read one step late. The metrics of a step are read after the next step has been dispatched, or when an evaluation
#     or a save waits for the device anyway. So the device never waits.
#  7. Only steps are timed. The clock starts when the first step, which compiles, is done. It stops when a state that
#     will be evaluated or saved is computed, before anything of it is read, and restarts after that.
#  8. All processes do the same. Each asks `Interruption` once per step, and what is due depends only on values that all
#     processes share: the step, that answer, and the scores. Evaluating, saving and counting replaced images wait for
#     every process.
#  9. Copied before donated. The next step reuses the buffers of the state. So `Checkpoints.save` has copied them when it
#     returns, and nothing else keeps a state.


def run_to_the_end(run: Run) -> Done:
    """Runs all steps. At a `Rollback`, returns to the last checkpoint and continues with other data."""
    detours = Detours(run.workdir, run.checkpoints.notes().get("rollbacks", 0))
    console.say("compiling the train step, which the first step waits for")
    while True:
        try:
            with Interruption() as interruption:
                return run_steps(run, detours, interruption)
        except Rollback as rollback:
            run.checkpoints.wait()  # rule 4
            after = run.checkpoints.latest_step() or 0
            detours.add(rollback, after, write=is_main_process())  # rule 5
            console.warn(f"{rollback}; returning to step {after} and continuing with the batches after the bad one")


def run_steps(run: Run, detours: Detours, interruption: Interruption) -> Done:
    """Runs the steps after the newest checkpoint, or all.

    Raises Rollback or DivergenceError at a bad step, and Stopped after a signal, once the state is saved.
    """
    config, plan, program, log = run.config, run.plan, run.program, run.log
    state, start = first_state(run)
    run.wall_time.begin(start)
    run.wall_time.enter("compile")
    bad_images, replaced_before = BadImages(console.warn), run.checkpoints.notes().get("replaced", 0)

    def notes(step: int) -> dict[str, int]:
        """Returns the notes of the checkpoint of a step."""
        count = replaced_before + sum_over_processes(bad_images.count(step - start))
        return {"replaced": count, "rollbacks": len(detours)}

    scores = None
    train_step = step_of(run)
    log.begin(start)
    if run.answering is not None:
        run.answering.begin(start)
    watch = Watch(config.on_nonfinite, parameter_names(program.abstract_state.trained), log.write)
    reading = ReadingSpeed()
    hosts = HostSpeeds(program.mesh, reading)
    late = LateMetrics(plan, watch, log, run.speed, log_every=config.log.every_steps, hosts=hosts)
    feed = Feed(run.opened, program, log, run.answering, bad_images, reading)
    batches: Any = feed.batches(start, detours.stretches(start, plan.total_steps))  # a generator, which can be closed
    # TensorBoard looks for traces next to its events.
    traces, trace_after = run.workdir.folder(TENSORBOARD), start + config.log.profile_after
    with contextlib.closing(batches), Profile(traces, trace_after, config.log.profile_steps) as profile:
        for step, batch in enumerate(late.timed(batches), start + 1):
            profile.before(step)
            state, metrics = train_step(step, state, batch)
            profile.after(step, state)
            late.note(step, metrics)
            if step == start + 1:
                late.start_clock(state)
                compare_with_need(run.speed, reading)
                run.wall_time.enter("steps")
            elif step % config.log.every_steps == 0:
                run.wall_time.note(step, late.waited())
            due = due_after(step, plan, interruption)
            if due.evaluation or due.save or due.stop:
                with late.settled(step, state):
                    scores = evaluate_and_save(run, step, state, due, notes, late.waited())
                run.wall_time.enter("steps")
    if run.answering is not None:
        run.answering.finish()
    return Done(state, scores, late.seconds_per_step(), **notes(plan.total_steps))


def step_of(run: Run) -> Callable[[int, TrainState, Any], tuple[TrainState, Metrics]]:
    """Returns the function (step, state, batch) -> (state, metrics). step: from 1; batch: from `Feed`."""
    if (answering := run.answering) is not None:
        return lambda step, state, batch: answering.take(step - 1, state, batch)
    train_step = compiled_together(run.program.train_step)
    return lambda step, state, batch: train_step(state, run.teacher, batch)


def first_state(run: Run) -> tuple[TrainState, int]:
    """Returns the state to start from and its step: the newest checkpoint's, or the initial one."""
    program, checkpoints = run.program, run.checkpoints
    if checkpoints.latest_step() is None:
        if run.config.model.weights and run.initial is None:
            raise CheckpointError(
                f"{run.workdir} no longer has a checkpoint to resume from: rerun the command to start from "
                f"config.model.weights={run.config.model.weights}"
            )
        return program.init(None if run.initial is None else run.initial.variables), 0
    state = checkpoints.restore(program.abstract_state)
    start = int(state.step)
    console.say(f"resuming after step {start}")
    return state, start


@dataclasses.dataclass(frozen=True)
class Due:
    """What to do after a step."""

    evaluation: bool
    save: bool
    stop: bool


def due_after(step: int, plan: Plan, interruption: Interruption) -> Due:
    """Returns the same in all processes, each of which calls it after every step (rule 8)."""
    last = step == plan.total_steps
    return Due(
        evaluation=last or (plan.evaluate_every > 0 and step % plan.evaluate_every == 0),
        save=last or step % plan.checkpoint_every == 0,
        stop=interruption.asked(step) and not last,
    )


def evaluate_and_save(
    run: Run, step: int, state: TrainState, due: Due, notes: Callable[[int], dict[str, int]], waited: float
) -> dict[str, Scores] | None:
    """Does what is due after a step whose metrics are settled; returns the scores of an evaluation, if any.

    Also saves a state with the best top-1 so far. notes: returns the notes of a step's checkpoint. waited: the seconds spent
    waiting for data. Raises Stopped.
    """
    scores, top1 = None, None
    if due.evaluation:
        run.wall_time.enter("evaluation")
        scores = run.evaluator.weights(run.program.model, weights_of(state))
        run.log.write(step, as_row(scores))
        console.scores_line(step, scores, run.evaluator.unreadable)
        top1 = best_top1(scores, run.config.model.fusion)
    if due.save or due.stop or (top1 is not None and run.checkpoints.would_be_best(top1)):
        run.wall_time.enter("save")
        run.log.sync()  # rule 2
        run.checkpoints.save(state, top1, notes(step))
        run.wall_time.note(step, waited, saved=True)
    if due.stop:
        run.checkpoints.wait()  # rule 4
        raise Stopped(f"stopped after step {step}, which is saved; rerun the same command to resume")
    return scores


def weights_of(state: TrainState) -> dict[str, Any]:
    """Returns the weights to evaluate: raw, and their moving average or None."""
    return {"raw": state.variables, "ema": state.ema}


def facts_of(opened: Opened, built: Built, teacher: Teacher | None, initial: Initial | None) -> dict[str, Any]:
    """Returns what is printed at the start, see `describe`."""
    sources = opened.train_source, opened.eval_source
    facts = describe(opened.config, opened.plan, built.program, *sources, teacher, initial, built.answers)
    needed = needed_images_per_second(speed_of(opened, built, teacher))
    return facts if needed is None else facts | {"reading": described_need(needed)}


def frozen_on_mesh(built: Built, teacher: Teacher | None, recording: RecordedTeacher | None) -> FrozenTeacher | None:
    """Returns the teacher on the mesh, once: a recorder has it there already."""
    if recording is not None:
        return recording.logits_source.frozen
    return None if teacher is None else jax.device_put(teacher.for_step(built.mesh), replicated(built.mesh))


def scores_of_teacher(
    workdir: Workdir, opened: Opened, built: Built, teacher: Teacher | None, frozen: FrozenTeacher | None
) -> Scores | None:
    """Returns the teacher's scores by head on the evaluation images.

    None without a teacher or config.evaluation.teacher, or if only the teacher's features are used: it may have other classes.
    """
    config = opened.config
    if teacher is None or frozen is None or not config.evaluation.teacher or not needs_logits(config):
        return None
    images, protocol = opened.identity.evaluation, protocol_of(config, opened.plan.image_size)
    return score_teacher(workdir, teacher, lambda: built.evaluator(frozen.model, frozen.variables), images, protocol)


def results_of(run: Run, done: Done, teacher_scores: Scores | None) -> Results:
    """Returns the content of `results.json`. Scores the extra evaluation sets; all processes call it."""
    config, evaluator, weights = run.config, run.evaluator, weights_of(done.state)
    scores = done.scores
    run.wall_time.enter("evaluation")
    if scores is None:  # an earlier start was stopped between the last save and the results
        scores = evaluator.weights(run.program.model, weights)
    extra = score_extra_sets(evaluator, run.program.model, weights, run.built.extra_sources, strict=False)
    seconds = done.seconds_per_step
    return {
        "step": run.plan.total_steps,
        "eval_images": len(run.opened.eval_source) - evaluator.unreadable,
        "unreadable_images": evaluator.unreadable,
        "scores": scores,
        "extra": extra,
        "protocol": protocol_of(config, run.plan.image_size),
        "teacher": teacher_scores,
        "recorded_teacher": recorded_teacher(run.built.answers),
        "images_per_second": None if seconds is None else config.train.batch_size / seconds,
        "replaced_images": done.replaced,
        "skipped_steps": from_main_process(lambda: skipped_steps(run.workdir)),
        "rollbacks": done.rollbacks,
        "wall_time": run.wall_time.total(),
    }
