# SPDX-License-Identifier: Apache-2.0
"""Data sets prepared by TFDS: the builders, the command and the reader."""
