# SPDX-License-Identifier: Apache-2.0
"""Import and export of weights: PyTorch, OpenAI, Hugging Face and our own files.

Reading requires neither PyTorch nor transformers, and never runs code from a file.
"""

from fmfa_jax.weights.archive import Archive, read_archive, sha256
from fmfa_jax.weights.deploy import export_onnx, export_stablehlo
from fmfa_jax.weights.export import export_hugging_face, export_official
from fmfa_jax.weights.hub import fetch, is_hub, located, weights_path
from fmfa_jax.weights.load import (
    Loaded,
    fill,
    load_model,
    load_params,
    stated_activation,
)
from fmfa_jax.weights.native import save_native
from fmfa_jax.weights.opened import (
    OpenedModel,
    fitting_tokenizer,
    open_with_tokenizer,
    run_config,
)
from fmfa_jax.weights.push import PUBLISHED
from fmfa_jax.weights.report import LoadReport
from fmfa_jax.weights.source import CONFIG_HINTS
from fmfa_jax.weights.tensors import StoredTensor, UnsafePickleError, WeightsError

__all__ = [
    "CONFIG_HINTS",
    "PUBLISHED",
    "Archive",
    "LoadReport",
    "Loaded",
    "OpenedModel",
    "StoredTensor",
    "UnsafePickleError",
    "WeightsError",
    "export_hugging_face",
    "export_official",
    "export_onnx",
    "export_stablehlo",
    "fetch",
    "fill",
    "fitting_tokenizer",
    "is_hub",
    "load_model",
    "load_params",
    "located",
    "open_with_tokenizer",
    "read_archive",
    "run_config",
    "save_native",
    "sha256",
    "stated_activation",
    "weights_path",
]
