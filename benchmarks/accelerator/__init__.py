# SPDX-License-Identifier: Apache-2.0
"""The check of a card: see `benchmarks.accelerator.__main__`."""
