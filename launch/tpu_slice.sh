#!/usr/bin/env bash
# One Cloud TPU slice: make it, install, train, and make it again when it is taken away. Run where gcloud is set up.
#
#   NAME=flm ZONE=us-east5-a TYPE=v5p-512 VERSION=v2-alpha-tpuv5 SOURCE='flm_jax[tpu] @ git+https://...' RUN=run.gin \
#     bash launch/tpu_slice.sh
#
# SOURCE is what pip installs. RUN is a gin file of your own that includes a model, data, runs/pretrain.gin and a layout, and
# sets MODEL_DIR and PREPARED_DIR to a file system that all hosts share (Filestore, or a bucket mounted with gcsfuse). TYPE
# counts TensorCores: v5p-512 is v5p:4x8x8, 256 chips. Look first: flm compile --gin_file=$RUN --topology=v5p:4x8x8
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${SOURCE:?}" "${RUN:?}"
MOUNT=${MOUNT:-true}  # what each host does first, such as mounting the shared file system

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

# NONE where there is no slice; UNKNOWN where Google could not be asked, which is no reason to delete one.
state() {
  local said
  if said=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2>&1); then
    echo "$said"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}

while true; do
  case "$(state)" in
    READY) ;;
    NONE)
      gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" --spot \
        || sleep 300  # no capacity now
      continue ;;
    PREEMPTED | TERMINATED | STOPPED)  # a preempted slice still has a name, and can only be deleted
      gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet || sleep 60
      continue ;;
    *) sleep 60; continue ;;  # between two states
  esac
  everywhere "$MOUNT && { [ -e flm ] || python3.11 -m venv flm; } && flm/bin/pip install -q '$SOURCE'" \
    && gcloud compute tpus tpu-vm scp "$RUN" "$NAME":run.gin --zone="$ZONE" --worker=all || { sleep 60; continue; }
  # Each host runs one process; they find each other by the TPU's metadata. The same command begins and goes on.
  # gcloud ends with 1 of its own accord, too: a code that somebody has to look at is handed on as 42. A process that a
  # lost connection has left behind is ended first: it saves, and would hold the TPU. By its name, for a pattern of its
  # command line would match this very shell.
  code=0
  everywhere 'pkill -TERM -x flm && sleep 120
    flm/bin/flm train --gin_file=run.gin; code=$?
    if [ $code -eq 1 ] || [ $code -eq 2 ]; then exit 42; fi; exit $code' || code=$?
  [ "$code" -eq 0 ] && break  # the last step of the last stage
  if [ "$code" -eq 42 ]; then exit 42; fi  # gradients that were not finite, a flag or a file
  sleep 60  # stopped by SIGTERM and saved; or the slice, or the connection, is gone
done
