# SPDX-License-Identifier: Apache-2.0
"""Find people by sentence in a gallery of any size."""
