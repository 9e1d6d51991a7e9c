#!/usr/bin/env bash
# Several slices that train together, over the data-centre network between them. Run where gcloud is set up.
#
#   NAME=flm ZONE=us-west4-b TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite SLICES=2 \
#     SOURCE='flm_jax[tpu] @ git+https://...' RUN=run.gin bash launch/tpu_multislice.sh
#
# SOURCE and RUN as in tpu_slice.sh. MeshShape.data must be a multiple of SLICES, and nothing else goes over slices. Look first:
# flm compile --gin_file=$RUN --topology=2xv5e:16x16
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${SLICES:?}" "${SOURCE:?}" "${RUN:?}"
MOUNT=${MOUNT:-true}

# A queued resource of several nodes is given whole or not at all, and its hosts know of each other (MEGASCALE_*
# variables, which JAX reads).
request() {
  gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" --node-count="$SLICES" --node-prefix="$NAME" --spot
}
# NONE where nothing was asked for; UNKNOWN where Google could not be asked, which is no reason to delete slices.
state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>&1); then
    echo "$said"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}
everywhere() {
  gcloud compute tpus queued-resources ssh "$NAME" --zone="$ZONE" --worker=all --node=all --command="$1"
}

while true; do
  case "$(state)" in
    ACTIVE) ;;
    NONE) request || sleep 300; continue ;;
    FAILED | SUSPENDED)  # one slice was taken away: the others are of no use alone
      gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet || sleep 60
      continue ;;
    *) sleep 60; continue ;;  # waiting for capacity, or between two states
  esac
  everywhere "$MOUNT && { [ -e flm ] || python3.11 -m venv flm; } && flm/bin/pip install -q '$SOURCE'" \
    && gcloud compute tpus queued-resources scp "$RUN" "$NAME":run.gin --zone="$ZONE" --worker=all --node=all \
    || { sleep 60; continue; }
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
