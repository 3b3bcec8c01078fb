# SPDX-License-Identifier: Apache-2.0
"""The data sets as TFDS prepares them: builders, the command, and the reader."""
