# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compare with: the method as its released code computes it."""
