#!/usr/bin/env bash
# Several slices that train together, over the data-centre network between them. Run where gcloud is set up.
#
#   NAME=flm ZONE=us-west4-b TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite SLICES=2 RUN=run.gin \
#     bash launch/tpu_multislice.sh
#
# MeshShape.data must be a multiple of SLICES, and nothing else goes over slices. Look first:
# flm compile --gin_file=$RUN --topology=2xv5e:16x16
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${SLICES:?}" "${RUN:?}"
SOURCE=${SOURCE:-'flm_jax[tpu]'}
MOUNT=${MOUNT:-true}

# A queued resource of several nodes is given whole or not at all, and its hosts know of each other (MEGASCALE_*
# variables, which JAX reads).
request() {
  gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" --node-count="$SLICES" --node-prefix="$NAME" --spot
}
state() { gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null; }
everywhere() {
  gcloud compute tpus queued-resources ssh "$NAME" --zone="$ZONE" --worker=all --node=all --command="$1"
}

while true; do
  case "$(state)" in
    ACTIVE) ;;
    WAITING_FOR_RESOURCES | ACCEPTED | PROVISIONING | CREATING | DELETING | SUSPENDING) sleep 60; continue ;;
    *)  # none yet, or one slice was taken away: the others are of no use alone
      gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet 2>/dev/null || true
      request || true; sleep 60; continue ;;
  esac
  everywhere "$MOUNT && { [ -e flm ] || python3.11 -m venv flm; } && flm/bin/pip install -q $SOURCE" \
    && gcloud compute tpus queued-resources scp "$RUN" "$NAME":run.gin --zone="$ZONE" --worker=all --node=all \
    || { sleep 60; continue; }
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
