#!/usr/bin/env bash
# Several processes on one machine as one run, from the repository's root:
#
#     launch/local_processes.sh 2 --config=configs/quickstart.py --workdir=runs/two
#
# The first argument is their number; what follows is run.py's. With CUDA each gets an equal share of the GPUs (GPUS=8 says how many
# there are, else nvidia-smi does); one process takes all GPUs just as well, and needs no script. Ends with the status that says what to
# do (docs/reliability.md): a process's own mistake (1, 2, 3) before the statuses of those that it took along (75, 134). Ctrl-C and
# SIGTERM are passed on, so that the run saves.
set -uo pipefail

processes=${1:?"the number of processes, then the arguments of run.py"}
shift
python=${PYTHON:-.venv/bin/python}
port=${PORT:-$((49152 + RANDOM % 8192))}
gpus=${GPUS:-$(command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus | wc -l || echo 0)}

if ((gpus % processes)); then
    echo "$gpus GPUs cannot be shared evenly by $processes processes" >&2
    exit 2
fi

started=()
for ((number = 0; number < processes; number++)); do
    if ((gpus)); then
        share=$((gpus / processes))
        CUDA_VISIBLE_DEVICES=$(seq -s, $((number * share)) $(((number + 1) * share - 1)))
        export CUDA_VISIBLE_DEVICES
    fi
    "$python" run.py "$@" --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$number" &
    started+=($!)
done
# The shell's children in the background ignore Ctrl-C: they get SIGTERM for both.
asked=0
trap 'asked=1; kill -TERM "${started[@]}" 2>/dev/null' TERM INT

# What a process's status says: 0 nothing; 1, 2, 3 (somebody has to fix something) before 75 (start again), before what ended it otherwise.
rank() {
    case $1 in
        0) echo 0 ;;
        1 | 2 | 3) echo $((100 + $1)) ;;
        75) echo 50 ;;
        *) echo 10 ;;
    esac
}

ends_with=0
for process in "${started[@]}"; do
    wait "$process"
    status=$?
    while ((asked)); do # the signal may have ended the wait and not the process
        asked=0
        wait "$process"
        again=$?
        if ((again != 127)); then status=$again; fi
    done
    if (($(rank "$status") > $(rank "$ends_with"))); then ends_with=$status; fi
done
exit "$ends_with"
