#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The same command on all hosts of a TPU slice; the checkout is in fmfa-jax on each:
#     bash deploy/tpu_vm.sh NAME ZONE main.py --config=configs/cuhk.py --workdir=/shared/runs/cuhk
set -eu
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="cd fmfa-jax && .venv/bin/python $(printf '%q ' "$@")"
