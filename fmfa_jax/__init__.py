# SPDX-License-Identifier: Apache-2.0
"""Text-to-image person retrieval: the device side."""
