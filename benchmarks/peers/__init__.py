# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' peers: the method as its released code computes it."""
