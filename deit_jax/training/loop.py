"""The one trainer, read from top to bottom."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deit_jax.aot.topologies import find_chip
from deit_jax.data.bad_images import BadImages
from deit_jax.data.sources import ImageSource
from deit_jax.errors import Stopped, first_line
from deit_jax.evaluation.accuracy import best_top1
from deit_jax.evaluation.extra import score_extra_sets
from deit_jax.evaluation.protocol import protocol_of
from deit_jax.evaluation.run import Evaluator
from deit_jax.models.flops import train_flops
from deit_jax.parallel.compilation_cache import share_compiled_programs
from deit_jax.parallel.distributed import (
    compiled_together,
    from_main_process,
    is_main_process,
    sum_over_processes,
    wait_for_all,
)
from deit_jax.parallel.sharding import put_batch, replicated
from deit_jax.reporting import console
from deit_jax.reporting.profile import Profile
from deit_jax.reporting.run_log import Pictures, RunLog
from deit_jax.reporting.speed import Pace, Speed
from deit_jax.storage.workdir import TENSORBOARD, Workdir, WorkdirLike
from deit_jax.training.announcement import describe
from deit_jax.training.checkpoint_folder import CheckpointError, last_step
from deit_jax.training.checkpointing import Checkpoints
from deit_jax.training.divergence import READ_EVERY, Detours, Rollback, Watch
from deit_jax.training.first_images import TRAINING_IMAGES, first_of_batch, read_first_rows
from deit_jax.training.interruption import Interruption
from deit_jax.training.lock import hold
from deit_jax.training.network_identity import check_teacher
from deit_jax.training.optimizer import parameter_names
from deit_jax.training.plan import Plan
from deit_jax.training.preparation import Opened, build_run, open_run, step_batches
from deit_jax.training.program import Initial, Program
from deit_jax.training.record import (
    claim_workdir,
    finished_results,
    scheduled_steps,
    show_results,
    skipped_steps,
    write_results,
)
from deit_jax.training.state import TrainState
from deit_jax.training.teacher import FrozenTeacher, Teacher
from deit_jax.training.teacher_scores import score_teacher

Results = dict[str, Any]


def train(
    config: ConfigDict,
    workdir: WorkdirLike,
    teacher: Teacher | None = None,
    initial: Initial | None = None,
    log: RunLog | None = None,
    opened: Opened | None = None,
) -> Results:
    """Train the configured model in `workdir`, or go on where an earlier call stopped; returns what `results.json` holds.

    config: validated. teacher: the frozen network for distillation, with as many classes as the student; None without one.
    initial: the weights of config.model.weights, from which a run starts that has no checkpoint yet; None: random ones.
    log: where the numbers go, for a caller who has more to log when this returns; None: one of its own. opened: what `open_run`
    returned for the same arguments; None: it is opened here.
    Raises ConfigError, DataError, WorkdirError or CheckpointError, each with one clear line, before anything is compiled; later
    also DivergenceError, LogError and, when a signal asks for it, Stopped.
    """
    # --- What will be done; nothing is written before all that can be refused has been checked ------------------------------
    workdir = Workdir.at(workdir)
    opened = opened or open_run(config, workdir)
    config, plan = opened.config, opened.plan
    if log is None:
        with RunLog(config, workdir, silent=not is_main_process()) as log:
            return train(config, workdir, teacher, initial, log, opened)
    if (results := finished_run(config, workdir, opened)) is not None:
        return results
    built = build_run(config, opened)
    mesh, program, evaluator = built.mesh, built.program, built.evaluator
    teachers = check_teacher(
        workdir, opened.record, () if teacher is None else teacher.networks, on_change=config.teacher.on_change,
        step=last_step(workdir) or 0,
    )  # fmt: skip
    with hold(workdir):
        began_with = "" if initial is None else initial.digest
        claim = functools.partial(claim_workdir, workdir, config, plan, opened.identity)
        from_main_process(lambda: claim(checked=opened.record, teachers=teachers, initial=began_with))
        if unsafe := share_compiled_programs(config.parallel.compilation_cache, opened.shared):
            console.warn(unsafe)
        facts = describe(config, plan, program, opened.train_source, opened.eval_source, teacher, initial)
        console.announce(f"Training in {workdir}", facts)
        protocol = protocol_of(config, plan.image_size)
        scored_by = dataclasses.asdict(opened.identity.evaluation) | {
            "protocol": protocol, "fusion": config.model.fusion, "weights": ["raw", "ema"] if config.ema.decay else ["raw"]
        }  # fmt: skip
        with Checkpoints(workdir, keep=config.checkpoint.keep, scored_by=scored_by) as checkpoints:
            frozen, teacher_scores = None, None
            if teacher is not None:
                frozen = jax.device_put(teacher.for_step(mesh), replicated(mesh))
                if config.evaluation.teacher:
                    teacher_scores = score_teacher(
                        workdir, teacher, lambda: evaluator(frozen.model, frozen.variables), opened.identity.evaluation,
                        protocol,
                    )  # fmt: skip

            # --- The steps, once more from the last checkpoint if they lead nowhere ----------------------------------------
            detours = Detours(workdir)
            speed = Speed(
                batch_size=config.train.batch_size,
                num_devices=mesh.size,
                flops=train_flops(program.model, None if teacher is None else teacher.model, plan.image_size),
                peak_flops=peak_flops(config, mesh.devices.flat[0]),
            )
            run = Run(
                config,
                workdir,
                plan,
                program,
                evaluator,
                opened.train_source,
                frozen,
                initial,
                checkpoints,
                detours,
                speed,
                log,
            )
            console.say("compiling the train step, which the first step waits for")
            done = None
            while done is None:
                try:
                    with Interruption() as interruption:
                        done = run_steps(run, interruption)
                except Rollback as rollback:
                    checkpoints.wait()
                    after = checkpoints.latest_step() or 0
                    detours.add(rollback, after, write=is_main_process())
                    console.warn(f"{rollback}; back to step {after}, and on with the batches after the bad one")

            # --- What came of it -------------------------------------------------------------------------------------------
            state, scores, pace, replaced = done
            if scores is None:  # stopped between the last save and the results
                scores = evaluator.weights(program.model, {"raw": state.variables, "ema": state.ema})
            checkpoints.wait()  # a run with results is finished: its last checkpoint is there
        weights = {"raw": state.variables, "ema": state.ema}
        extra = score_extra_sets(evaluator, program.model, weights, built.extra_sources, strict=False)
        seconds = pace.seconds_per_step()
        results = {
            "step": plan.total_steps,
            "eval_images": len(opened.eval_source) - evaluator.unreadable,
            "unreadable_images": evaluator.unreadable,
            "scores": scores,
            "extra": extra,
            "protocol": protocol,
            "teacher": teacher_scores,
            "images_per_second": None if seconds is None else config.train.batch_size / seconds,
            "replaced_images": replaced,
            "skipped_steps": from_main_process(lambda: skipped_steps(workdir)),
            "rollbacks": len(detours),
        }
        if is_main_process():
            write_results(workdir, results)
            log.finish(results)
        wait_for_all("the results are written")
        show_results(config, results)
        return results


def finished_run(config: ConfigDict, workdir: WorkdirLike, opened: Opened) -> Results | None:
    """Print and return the results of a run that has done all its steps; None if there are steps to do."""
    results = None if opened.record is None else finished_results(workdir, opened.plan)
    if opened.record is None or results is None:
        return None
    done, schedule = opened.plan.total_steps, scheduled_steps(opened.record)
    if done < schedule:
        console.say(
            f"{workdir} has done the {done:,} steps that config.train.max_steps asks for, of {schedule:,} of its schedule: raise "
            "it to go on"
        )
    else:
        console.say(f"{workdir} is finished: {done:,} steps are done. Another --workdir starts from scratch.")
    show_results(config, results)
    return results


@dataclasses.dataclass(frozen=True)
class Run:
    """What the steps need, made by `train`."""

    config: ConfigDict
    workdir: Workdir
    plan: Plan
    program: Program
    evaluator: Evaluator
    train_source: ImageSource
    teacher: FrozenTeacher | None  # on the mesh
    initial: Initial | None
    checkpoints: Checkpoints
    detours: Detours
    speed: Speed
    log: RunLog


def run_steps(run: Run, interruption: Interruption) -> tuple[TrainState, dict[str, Any] | None, Pace, int]:
    """All steps from the newest checkpoint on, or from the first: (state, last scores, pace, number of replaced images).

    Raises Rollback or DivergenceError at a bad step, Stopped when a signal has asked for it and the state is saved.
    """
    config, plan, program, checkpoints = run.config, run.plan, run.program, run.checkpoints
    if checkpoints.latest_step() is None:
        if config.model.weights and run.initial is None:
            raise CheckpointError(
                f"{run.workdir} has no checkpoint to go on from any more: run the command again, to start from "
                f"config.model.weights={config.model.weights}"
            )
        state, start = program.init(None if run.initial is None else run.initial.variables), 0
    else:
        state = checkpoints.restore(program.abstract_state)
        start = int(state.step)
        console.say(f"resuming after step {start}")
    bad_images, replaced_before = BadImages(console.warn), checkpoints.notes().get("replaced", 0)

    def replaced(step: int) -> int:
        return replaced_before + sum_over_processes(bad_images.count(step - start))

    pace, scores, metrics = Pace(), None, None
    # A step that is judged, and what of it is logged, if anything: metrics, and how many steps were measured up to it.
    pending: tuple[int, tuple[dict[str, jax.Array], int] | None] | None = None
    train_step = compiled_together(program.train_step)
    log = run.log
    log.begin(start)
    on_host = host_batches(run, start, bad_images)
    if start == 0 and log.shows_pictures:
        on_host = pictured(run, on_host)
    on_mesh = one_ahead(put_batch(program.mesh, batch) for batch in on_host)
    batches = pace.waiting(on_mesh, lambda: metrics is None or metrics["loss"].is_ready())
    # TensorBoard looks for traces where its events are.
    with Profile(
        run.workdir.folder(TENSORBOARD), start + config.log.profile_after, config.log.profile_steps
    ) as profile:
        watch = Watch(config.on_nonfinite, parameter_names(program.abstract_state.params), log.write)

        def write_pending() -> None:
            nonlocal pending
            if pending is not None:
                of_step, logged = pending
                watch.read(through=of_step)
                if logged is not None:
                    metrics_of_step, measured = logged
                    jax.block_until_ready(metrics_of_step)  # the time until now is that of steps which are done
                    pace_of_step = pace.seconds_per_step(measured)
                    data_wait = None if pace_of_step is None else pace.data_wait()
                    log_step(log, plan, of_step, metrics_of_step, pace_of_step, data_wait, run.speed)
                pending = None

        for step, batch in enumerate(batches, start + 1):
            profile.before(step)
            state, metrics = train_step(state, run.teacher, batch)
            profile.after(step, state)
            pace.step()
            metrics = watch.note(step, metrics)
            # A step's metrics are read only after the next step has been handed to the device, which so never waits.
            write_pending()
            if step == start + 1:
                jax.block_until_ready(state)  # compiled and run once: the pace counts from here
                pace.restart()
            if step % config.log.every_steps == 0 or step in (1, plan.total_steps):
                pending = step, (metrics, pace.steps)
            elif step % READ_EVERY == 0:
                pending = step, None  # to be judged, not logged

            last = step == plan.total_steps
            evaluating = last or (plan.evaluate_every and step % plan.evaluate_every == 0)
            saving = last or step % plan.checkpoint_every == 0
            stopping = interruption.asked(step) and not last
            if evaluating or saving or stopping:
                jax.block_until_ready(state)
                pace.pause()
                write_pending()
                watch.read(through=step)  # what is evaluated and saved is sound
                top1 = None
                if evaluating:
                    scores = run.evaluator.weights(program.model, {"raw": state.variables, "ema": state.ema})
                    log.write(step, flatten(scores))
                    console.scores_line(step, scores, run.evaluator.unreadable)
                    top1 = best_top1(scores, config.model.fusion)
                if saving or stopping or (top1 is not None and checkpoints.would_be_best(top1)):
                    log.sync()  # every row up to this step: a resumed run writes only later ones
                    checkpoints.save(state, top1, {"replaced": replaced(step)})
                if stopping:
                    checkpoints.wait()
                    raise Stopped(f"stopped after step {step}, which is saved; the same command goes on from there")
                pace.restart()
    return state, scores, pace, replaced(plan.total_steps)


def host_batches(run: Run, start: int, bad_images: BadImages) -> Iterator[dict[str, np.ndarray]]:
    """This host's batches of the steps from `start` (counted from 0) on."""
    for first, end in run.detours.stretches(start, run.plan.total_steps):
        rows = run.program.host_rows
        yield from step_batches(run.config, run.train_source, run.plan, rows, first, end, bad_images)
    bad_images.warn_of_total()


def pictured(run: Run, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The same batches; the first images of the first are logged as the model will see them."""
    first = next(batches, None)
    if first is None:
        return
    names, rows = run.train_source.class_names, run.program.host_rows
    shown = first
    if not rows.dealt or rows.stretches[0][0] > 0:  # the first rows come from several hosts: read them here
        silent = BadImages(lambda line: None)
        shown = read_first_rows(run.config, run.plan, run.train_source, TRAINING_IMAGES, silent)
    try:
        seen, targets = first_of_batch(run.config, run.plan, names, shown, TRAINING_IMAGES).as_trained_on(
            TRAINING_IMAGES
        )
        run.log.pictures(0, Pictures("images/training", list(seen), targets, names))
    except jax.errors.JaxRuntimeError as error:  # too little memory: a picture is not worth the run
        console.warn(f"the training images are not logged ({first_line(error)})")
    yield first
    yield from batches


def one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same items, each asked for while the one before is in use, so that its transfer overlaps the step."""
    previous = next(batches, None)
    while previous is not None:
        following = next(batches, None)
        yield previous
        previous = following


def peak_flops(config: ConfigDict, device: jax.Device) -> float | None:
    """The configured peak FLOP/s of a device, else the published one of its kind, else None."""
    if config.log.peak_tflops is not None:
        return config.log.peak_tflops * 1e12
    chip = find_chip(device.device_kind)
    return None if chip is None else chip.peak_flops


def log_step(
    log: RunLog,
    plan: Plan,
    step: int,
    metrics: dict[str, jax.Array],
    seconds_per_step: float | None,
    data_wait: float | None,
    speed: Speed,
) -> None:
    """Write a step's metrics to the files and the console; without a pace (the first step) no speed is told."""
    values = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
    values["epoch"] = step / plan.steps_per_epoch
    rates = None if seconds_per_step is None else speed.metrics(seconds_per_step)
    if rates is not None and data_wait is not None:  # both or none is known
        values |= rates | {"data_wait": data_wait}
    log.write(step, values)
    console.progress(
        step=step,
        total_steps=plan.total_steps,
        epoch=values["epoch"],
        loss=values["train/loss"],
        learning_rate=values["train/learning_rate"],
        speed=rates,
        data_wait=data_wait,
        eta=None if seconds_per_step is None else seconds_per_step * (plan.total_steps - step),
    )


def flatten(scores: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """{"raw": {"class": {"top1": x}}} to {"eval/raw/class/top1": x}."""
    return {
        f"eval/{weights}/{head}/{name}": value
        for weights, by_head in scores.items()
        for head, by_name in by_head.items()
        for name, value in by_name.items()
    }
