#!/usr/bin/env bash
# Runs several processes on one machine as one run; call it from the repository's root:
#
#     launch/local_processes.sh 2 --config=configs/quickstart.py --workdir=runs/two
#
# The first argument is the number of processes; the rest goes to run.py. With CUDA each process gets an equal share of the GPUs
# (GPUS=8 sets their number, by default from nvidia-smi). A single process also uses all GPUs and needs no script. The exit status is the
# one to act on (docs/reliability.md): an error of one process (1, 2, 3) rather than the statuses of the others that it ended (75, 134).
# Ctrl-C and SIGTERM are forwarded, so that the run saves.
set -uo pipefail

processes=${1:?"usage: local_processes.sh PROCESSES ARGUMENTS_OF_RUN_PY"}
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
# Background processes of the shell ignore Ctrl-C, so they get SIGTERM for both.
signaled=0
trap 'signaled=1; kill -TERM "${started[@]}" 2>/dev/null' TERM INT

# Priority of an exit status: 1, 2, 3 (needs a fix), then 75 (start again), then other failures, then 0.
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
    while ((signaled)); do # the signal may have interrupted only the wait
        signaled=0
        wait "$process"
        again=$?
        if ((again != 127)); then status=$again; fi
    done
    if (($(rank "$status") > $(rank "$ends_with"))); then ends_with=$status; fi
done
exit "$ends_with"
