#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One task per GPU on several nodes, from the repository's root:
#     sbatch deploy/slurm.sh main.py --config=configs/cuhk.py --workdir=/shared/runs/cuhk
#     sbatch deploy/slurm.sh -m fmfa_jax.search index GALLERY --model MODEL --out INDEX
#SBATCH --job-name=fmfa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
# Every task has to see all GPUs of its node: JAX lets each take that of its SLURM_LOCALID.
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Three minutes before the time is over all tasks save and end with 75.
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

# For one task per node: --ntasks-per-node=1, and
# export JAX_LOCAL_DEVICE_IDS=0,1,2,3

srun --kill-on-bad-exit=1 .venv/bin/python "$@"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
