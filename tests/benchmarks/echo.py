# SPDX-License-Identifier: Apache-2.0
"""A child that answers with what it was given."""

import os
import sys

from benchmarks import common

if __name__ == "__main__":
    common.answer({"said": [*sys.argv[1:], os.environ["KEPT"], os.environ["ADDED"]]})
