#!/usr/bin/env bash
# One Cloud TPU slice: make it, install, train, and make it again when it is taken away. Run where gcloud is set up.
#
#   NAME=flm ZONE=us-east5-a TYPE=v5p-512 VERSION=v2-alpha-tpuv5 RUN=run.gin bash launch/tpu_slice.sh
#
# RUN is a gin file of your own that includes a model, data, runs/pretrain.gin and a layout, and sets MODEL_DIR and
# PREPARED_DIR to a file system that all hosts share (Filestore, or a bucket mounted with gcsfuse). TYPE counts
# TensorCores: v5p-512 is v5p:4x8x8, 256 chips. Look first: flm compile --gin_file=$RUN --topology=v5p:4x8x8
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${RUN:?}"
SOURCE=${SOURCE:-'flm_jax[tpu]'}  # what pip installs; a wheel or a git address works too
MOUNT=${MOUNT:-true}              # what each host does first, such as mounting the shared file system

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

exists() { gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null; }

while true; do
  # A preempted slice still has a name, and can only be deleted.
  if [ "$(exists)" != READY ]; then
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet 2>/dev/null || true
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" --spot \
      || { sleep 300; continue; }  # no capacity now
  fi
  everywhere "$MOUNT && { [ -e flm ] || python3.11 -m venv flm; } && flm/bin/pip install -q $SOURCE" \
    && gcloud compute tpus tpu-vm scp "$RUN" "$NAME":run.gin --zone="$ZONE" --worker=all || { sleep 60; continue; }
  # Each host runs one process; they find each other by the TPU's metadata. The same command begins and goes on.
  # gcloud ends with 1 of its own accord, too: a code that somebody has to look at is handed on as 42. A process that a
  # lost connection has left behind is ended first: it saves, and would hold the TPU.
  code=0
  everywhere 'pkill -TERM -f "flm train" && sleep 120
    flm/bin/flm train --gin_file=run.gin; code=$?
    if [ $code -eq 1 ] || [ $code -eq 2 ]; then exit 42; fi; exit $code' || code=$?
  [ "$code" -eq 0 ] && break  # the last step of the last stage
  if [ "$code" -eq 42 ]; then exit 42; fi  # gradients that were not finite, a flag or a file
  sleep 60  # stopped by SIGTERM and saved; or the slice, or the connection, is gone
done
