"""--mode=eval: the newest checkpoint of a workdir on its evaluation images."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from deit_jax.config import validate
from deit_jax.data.registry import open_source
from deit_jax.evaluation.accuracy import Scores
from deit_jax.evaluation.run import Evaluator
from deit_jax.parallel.distributed import is_main_process
from deit_jax.parallel.mesh import make_mesh
from deit_jax.parallel.sharding import replicated
from deit_jax.reporting.metrics import write_json
from deit_jax.training.checkpointing import load_variables
from deit_jax.training.program import build_model
from deit_jax.training.record import read_config, show_results


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Scores]:
    """Score the raw and EMA weights in `workdir` on the evaluation images that `config` names, print the table and write
    it to `evaluation.json`.

    Returns {"raw": scores, "ema": scores}. Raises ConfigError, DataError or CheckpointError, each with one clear line.
    """
    validate(config)
    resolved = read_config(workdir)["resolved"]
    model = build_model(config, **{name: resolved[name] for name in ("num_classes", "image_size", "compute_dtype")})
    source = open_source(config.data, "eval")
    mesh = make_mesh()
    evaluator = Evaluator(config, source, mesh, image_size=resolved["image_size"])
    weights, step = {}, 0
    for which in ("raw", "ema") if config.ema.decay > 0 else ("raw",):
        variables, step = load_variables(workdir, which)
        weights[which] = jax.device_put(variables, replicated(mesh))
    scores = evaluator.weights(model, weights["raw"], weights.get("ema"))
    results = {"step": step, "eval_images": len(source), "scores": scores, "teacher": None}
    if is_main_process():
        write_json(workdir / "evaluation.json", results)
    show_results(config, results)
    return scores
