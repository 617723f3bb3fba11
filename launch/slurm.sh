#!/usr/bin/env bash
# Runs on Slurm; submit it from the repository's root. Adjust nodes, GPUs, cores and time to the cluster:
#
#     sbatch launch/slurm.sh --config=configs/deit.py:base,distilled --workdir=/shared/runs/deit
#     sbatch --nodes=4 --gpus-per-node=4 launch/slurm.sh ...
#
# Arguments after the script go to run.py. A run that must stop saves and is requeued until it is finished (docs/pods.md).
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
# One task per node uses all its GPUs; more tasks share them.
# Every task gets SIGTERM 300 seconds before the time limit, or on preemption: time for a step, an evaluation and a save.
set -uo pipefail

python=${PYTHON:-.venv/bin/python}
most_restarts=${MOST_RESTARTS:-200}
restarts=${SLURM_RESTART_COUNT:-0}

# srun does not inherit the number of cores from the job.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" run.py "$@"
status=$?

# Statuses (docs/reliability.md) after which the same command resumes: saved, another process lost (the last checkpoint is kept),
# killed, stopped before there was anything to save. srun returns the highest status of its tasks.
case $status in
    75 | 134 | 137 | 143)
        if ((restarts >= most_restarts)); then
            echo "status $status after $restarts restarts: not requeued" >&2
        elif scontrol requeue "$SLURM_JOB_ID"; then
            echo "status $status: requeued (restart $((restarts + 1)))" >&2
            sleep 60 # until Slurm ends this script; if the script ended by itself, the job would be complete
        fi
        ;;
esac
exit "$status"
