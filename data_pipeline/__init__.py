# SPDX-License-Identifier: Apache-2.0
"""From files to batches of plain arrays; independent of any accelerator."""
