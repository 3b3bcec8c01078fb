# SPDX-License-Identifier: Apache-2.0
"""RDE: learning from pairs of which some are wrong (Qin et al., CVPR 2024)."""
