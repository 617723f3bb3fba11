#!/usr/bin/env bash
# Manages a TPU slice on Compute Engine; call it from the repository's root, with gcloud logged in and a project selected:
#
#     export NAME=deit ZONE=us-west4-a TYPE=v5litepod-16 NFS=10.0.0.2:/share
#     launch/tpu_vm.sh create              # a queued resource; waits until it is active. SPOT=1: preemptible
#     launch/tpu_vm.sh setup               # installs this commit and its requirements on every worker, mounts NFS at /mnt/shared
#     launch/tpu_vm.sh run --config=configs/deit.py:base,distilled --workdir=/mnt/shared/runs/deit --config.data.path=/mnt/shared/tfds
#     launch/tpu_vm.sh stop                # SIGTERM: saves; `run` resumes
#     launch/tpu_vm.sh delete
#
# Without NFS use buckets: --workdir=gs://BUCKET/RUN --config.data.path=gs://BUCKET/DATA, and export SERVICE_ACCOUNT=EMAIL, an account
# that may read and write them (docs/pods.md).
#
# Not yet run on a TPU (docs/pods.md).
set -euo pipefail

name=${NAME:?"NAME of the TPU"}
zone=${ZONE:?"ZONE, e.g. us-west4-a"}
type=${TYPE:-v5litepod-16}
version=${VERSION:-v2-alpha-tpuv5-lite} # the image for the type
folder=deit_jax                         # in the workers' home

on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

case ${1:-} in
    create)
        spot=()
        if [[ -n ${SPOT:-} ]]; then spot=(--spot); fi
        account=()
        if [[ -n ${SERVICE_ACCOUNT:-} ]]; then account=(--service-account="$SERVICE_ACCOUNT"); fi
        gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$type" \
            --runtime-version="$version" "${spot[@]}" "${account[@]}"
        while :; do
            state=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)")
            echo "$state"
            case $state in
                ACTIVE) break ;;
                FAILED | SUSPENDING | SUSPENDED) exit 1 ;;
            esac
            sleep 30
        done
        ;;
    setup)
        archive=$(mktemp --suffix=.tar.gz)
        trap 'rm -f "$archive"' EXIT
        git archive --format=tar.gz --output="$archive" HEAD
        gcloud compute tpus tpu-vm scp "$archive" "$name:deit_jax.tar.gz" --zone="$zone" --worker=all
        # The image's Python may be older than 3.12.
        on_all_workers "set -e
            mkdir -p $folder && tar -xzf deit_jax.tar.gz -C $folder && cd $folder
            python3 -m pip install --quiet --user uv
            test -d .venv || ~/.local/bin/uv venv --quiet --python=3.12 .venv
            ~/.local/bin/uv pip install --quiet --python=.venv/bin/python -c constraints/python3.12.txt -e '.[tpu,buckets]'"
        if [[ -n ${NFS:-} ]]; then
            on_all_workers "sudo apt-get install -y -qq nfs-common && sudo mkdir -p /mnt/shared && \
                (mountpoint -q /mnt/shared || sudo mount '$NFS' /mnt/shared)"
        fi
        ;;
    run)
        shift
        # Compute Engine's firewall rule may not open JAX's default port, 8482 (docs/pods.md).
        on_all_workers "cd $folder && echo \$\$ >run.pid && export JAX_COORDINATOR_PORT=8476 && \
            exec .venv/bin/python run.py$(printf ' %q' "$@")"
        ;;
    stop)
        on_all_workers "kill -TERM \$(cat $folder/run.pid)"
        ;;
    delete)
        gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force
        ;;
    *)
        echo "usage: $0 create|setup|run|stop|delete" >&2
        exit 2
        ;;
esac
