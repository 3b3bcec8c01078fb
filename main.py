# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a text-to-image person retriever, as `fmfa train` does.

    python main.py --config=configs/demo.py --workdir=runs/demo
    python main.py --config=configs/cuhk.py:plus --workdir=runs/cuhk
    python main.py --config=configs/cuhk.py --workdir=runs/cuhk --mode=eval

The same command resumes an interrupted run.
"""

from fmfa_jax.main import program

if __name__ == "__main__":
    program()
