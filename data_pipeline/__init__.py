# SPDX-License-Identifier: Apache-2.0
"""Files to batches of plain arrays; knows no accelerator."""
