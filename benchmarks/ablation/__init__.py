# SPDX-License-Identifier: Apache-2.0
"""What each part of the methods brings, measured on drawn people.

    python -m benchmarks.ablation --rows irra rde --seeds 0 1 2 --noise 0 50

See `rows` for what is compared, `runs` for how it is trained, `table` for what is said.
"""
