"""The analysis of two short runs, by the command."""

import json

import numpy as np
import pytest

from .commands import TINY, refused, succeed


@pytest.mark.long
def test_two_trained_checkpoints_are_analyzed(tmp_path):
    succeed(f"{TINY}:both", f"--workdir={tmp_path}/a", "--config.train.max_steps=2")
    succeed(TINY, f"--workdir={tmp_path}/b", "--config.train.max_steps=2", "--config.data.repeats=1")
    done = succeed("--mode=analyze", f"--workdir={tmp_path}/a", f"--compare={tmp_path}/b", "--weights=ema")
    folder = tmp_path / "a" / "analysis"
    matrix = json.loads((folder / "disagreement.json").read_text())
    assert matrix["names"][:5] == ["ground truth", "a, class", "a, distillation", "a, both", "a/teacher"]
    assert np.array(matrix["matrix"]).shape == (8, 8)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    top1 = results["scores"]["ema"]["distillation"]["top1"]
    assert matrix["matrix"][0][2] == pytest.approx(1 - top1 / 100)
    assert set(json.loads((folder / "tokens.json").read_text())["cosines"]) == {"a", "b"}
    for name in ("disagreement.png", "tokens.png", "position_embedding.png", "attention_3_eval_3.png"):
        assert (folder / name).stat().st_size > 5000
    assert (
        "Cosine of class and distillation token" in done.stdout
        and "after step 2" in (folder / "tokens.json").read_text()
    )


def test_missing_flags_are_reported_in_one_line(tmp_path):
    assert "--workdir is missing" in refused("--mode=analyze")
    assert "--figure is missing" in refused("--mode=figures", f"--output={tmp_path}/a.png")
    assert "--config is missing" in refused("--mode=throughput")
    assert "is not the --workdir of a training run" in refused("--mode=analyze", f"--workdir={tmp_path}")
