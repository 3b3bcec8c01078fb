# SPDX-License-Identifier: Apache-2.0
"""Speed and memory, each compared with a peer: `python -m benchmarks.NAME`."""
