# SPDX-License-Identifier: Apache-2.0
"""The run folder: checkpoints, logs, and what a run was made on."""
