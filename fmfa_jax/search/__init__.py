# SPDX-License-Identifier: Apache-2.0
"""Find people by sentence in a gallery of any size."""

from fmfa_jax.search.build import Change, add, index_gallery, remove
from fmfa_jax.search.encoder import Encoder, open_encoder, reopen_encoder
from fmfa_jax.search.exact import ExactSearch, Found
from fmfa_jax.search.query import Gallery, Searcher, contact_sheet, open_searcher
from fmfa_jax.search.store import Manifest, SearchError, read_manifest

__all__ = [
    "Change",
    "Encoder",
    "ExactSearch",
    "Found",
    "Gallery",
    "Manifest",
    "SearchError",
    "Searcher",
    "add",
    "contact_sheet",
    "index_gallery",
    "open_encoder",
    "open_searcher",
    "read_manifest",
    "remove",
    "reopen_encoder",
]
