# SPDX-License-Identifier: Apache-2.0
"""What is learned: one file or folder a method, from a batch to its named losses."""
