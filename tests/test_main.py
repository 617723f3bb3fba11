"""`main` called several times in one process, as in a Jupyter kernel."""

import json
import subprocess
import sys

import pytest
from absl import flags

from deit_jax.main import main
from tests.end_to_end.commands import ROOT, SHORT, TINY, environment, forked


def _several_calls(folder):
    """Two runs of different configurations with a refused command between them, then other modes."""
    flags.FLAGS(["kernel", "--log_dir=/theirs"])  # flags that other code has parsed are kept
    argv = list(sys.argv)
    main([*SHORT, f"--workdir={folder}/a", "--config.seed=7", "--config.optimizer.betas=(0.8, 0.9)"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main([TINY, f"--workdir={folder}/refused", "--config.seed=8", "--mode=eval", "--config.ema.decay=3"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--mode=models", "--output=gs://bucket/models.json"])
    sys.argv = ["/lib/ipykernel_launcher.py", "-f", "kernel.json"]
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    sys.argv = ["run.py", *SHORT, f"--workdir={folder}/b", "--config.log.every_steps=2"]
    main()
    sys.argv = argv
    main(["--mode=export", f"--workdir={folder}/a", f"--output={folder}/a.safetensors"])
    main(["--version"])
    main(["--help"])
    assert sys.argv == argv
    assert [flags.FLAGS[name].value for name in ("config", "workdir", "mode")] == [None, None, "train"]
    assert flags.FLAGS.log_dir == "/theirs"
    print("all done")


def test_a_second_run_in_a_process_has_its_own_flags(tmp_path):
    done = forked(_several_calls, str(tmp_path), **environment())
    assert done.returncode == 0 and done.stdout.endswith("all done\n"), done.stdout[-2000:] + done.stderr[-3000:]
    refused, address, without_flags = done.stderr.strip().splitlines()
    assert refused.startswith("error: config.ema.decay=3")
    assert address == "error: --output='gs://bucket/models.json' is an address: give a path on a disk of this machine"
    assert without_flags.startswith("error: in a notebook use !python run.py --config=")
    first, second = (json.loads((tmp_path / name / "config.json").read_text())["config"] for name in "ab")
    assert (first["seed"], first["optimizer"]["betas"]) == (7, [0.8, 0.9])
    assert (second["seed"], second["optimizer"]["betas"]) == (0, [0.9, 0.999])
    assert (first["log"]["every_steps"], second["log"]["every_steps"]) == (1, 2)
    assert (tmp_path / "a.safetensors").exists()
    assert not (tmp_path / "refused").exists()


def test_an_environment_without_the_requirements_is_named():
    """-S: without the packages of the environment, as an interpreter in which nothing was installed."""
    done = subprocess.run([sys.executable, "-S", ROOT / "run.py", "--version"], capture_output=True, text=True, env={})
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no package ") and "pip install ." in line
