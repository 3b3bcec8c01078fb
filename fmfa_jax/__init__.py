# SPDX-License-Identifier: Apache-2.0
"""Text-to-image person retrieval: the device side."""

__version__ = "0.1.0"
