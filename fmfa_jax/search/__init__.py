# SPDX-License-Identifier: Apache-2.0
"""Find people by sentence in a gallery of any size."""

from fmfa_jax.search.encoder import IndexModel, open_model, reopen_model
from fmfa_jax.search.exact import ExactSearch, Found
from fmfa_jax.search.index import add, index_gallery, remove
from fmfa_jax.search.query import Gallery, Searcher, contact_sheet, open_searcher
from fmfa_jax.search.store import IndexRecord, SearchError, read_record
from fmfa_jax.search.update import Change
from fmfa_jax.search.verify import verify

__all__ = [
    "Change",
    "ExactSearch",
    "Found",
    "Gallery",
    "IndexModel",
    "IndexRecord",
    "SearchError",
    "Searcher",
    "add",
    "contact_sheet",
    "index_gallery",
    "open_model",
    "open_searcher",
    "read_record",
    "remove",
    "reopen_model",
    "verify",
]
