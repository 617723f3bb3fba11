#!/usr/bin/env bash
# Slurm, from the repository's root; nodes, GPUs, cores and time as the cluster has them:
#
#     sbatch launch/slurm.sh --config=configs/deit.py:base,distilled --workdir=/shared/runs/deit
#     sbatch --nodes=4 --gpus-per-node=4 launch/slurm.sh ...
#
# What follows the script is run.py's. A run that had to stop saves and is queued again, until it is finished (docs/pods.md).
#SBATCH --job-name=deit_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# One task a node takes all its GPUs; with one a GPU a process each.
# 300 seconds before the time is up, or when it is preempted, every task gets SIGTERM: time for a step, an evaluation and a save.
set -uo pipefail

python=${PYTHON:-.venv/bin/python}
most_restarts=${MOST_RESTARTS:-200}
restarts=${SLURM_RESTART_COUNT:-0}

# srun takes no number of cores from the job by itself.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" run.py "$@"
status=$?

# The statuses of docs/reliability.md after which the same command goes on: saved, another process gone (the last checkpoint is there),
# killed, asked to stop before there was anything to save. srun's status is the highest of its tasks'.
case $status in
    75 | 134 | 137 | 143)
        if ((restarts >= most_restarts)); then
            echo "status $status after $restarts restarts: not queued again" >&2
        elif scontrol requeue "$SLURM_JOB_ID"; then
            echo "status $status: queued again (restart $((restarts + 1)))" >&2
            sleep 60 # until Slurm ends this script, whose own end would count as the job's
        fi
        ;;
esac
exit "$status"
