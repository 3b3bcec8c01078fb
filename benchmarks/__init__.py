# SPDX-License-Identifier: Apache-2.0
"""Speed and memory, each beside a peer: `python -m benchmarks.NAME`."""
