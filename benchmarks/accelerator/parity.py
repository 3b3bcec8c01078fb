# SPDX-License-Identifier: Apache-2.0
"""The card computes what the host's CPU computes in float32, at two layers."""

from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.run import Run
from benchmarks.train_step_case import MASK_RATE, make_batch
from benchmarks.whole_step import build, sized
from fmfa_jax import models
from fmfa_jax.machines.mesh import make_mesh
from fmfa_jax.methods.views import Augmentation, augment_images, mask_tokens
from fmfa_jax.training.gradients import loss_and_gradient

PAIRS, LAYERS = 8, 2
# Of features and losses. EFA's gradient jumps where two patches fit a word equally
# well, so that a gradient is only shown.
LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}
# A card fuses a multiplication with an addition, a last bit of a normalised pixel.
VIEW_LIMIT = 1e-6
_SHOWN = "features", "losses"


def beside_cpu(run: Run) -> None:
    """Compare features, losses, gradient, views and masks."""
    host, card = jax.devices("cpu")[0], jax.devices()[0]
    model = sized(run.sizes.model, layers=LAYERS, device=host)
    rows = make_batch(vars(model), PAIRS)
    with jax.default_device(host):
        params = jax.tree.map(np.asarray, models.init_params(model, 0))
    wanted = computed(model, params, rows, host)
    # With bfloat16 the card takes the kernels that training takes.
    for dtype, limit in LIMITS.items():
        same = sized(run.sizes.model, layers=LAYERS, device=card, dtype=dtype)

        def row(same: Any = same, limit: float = limit) -> dict[str, Any]:
            """Compare what the card computes with what was wanted."""
            found = computed(same, params, rows, card)
            gaps = {name: distance(found[name], wanted[name]) for name in wanted}
            near = max(gaps[name] for name in _SHOWN) < limit
            how = {"attention": same.attention, "limit": limit}
            return how | gaps | {"verdict": "near" if near else "FAR"}

        run.measure(dtype, row)
    run.measure("views and masks", lambda: _views(model, rows, host, card))


def computed(
    model: models.ModelConfig, params: Any, rows: Any, device: Any
) -> dict[str, Any]:
    """Return features, losses and gradient on a device, in float64."""
    mesh = make_mesh(devices=[device])
    whole = build(model, batch=PAIRS, mesh=mesh, pairs=PAIRS)
    gradient = loss_and_gradient(whole.method, chunks=1, mesh=mesh)
    with jax.default_device(device):
        params, batch = jax.device_put(params, device), whole.batch(rows)
        key = jax.random.key(0)
        (_, measured), grads = jax.jit(gradient)(params, batch, key, {})
        config = models.towers_only(model)
        towers = models.params_of(config, params)
        features = [
            models.image_features(config, towers, batch["image"]),
            models.text_features(config, towers, batch["tokens"]),
        ]
    found = {"features": features, "losses": measured.scalars, "gradient": grads}
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def distance(found: Any, wanted: Any) -> float:
    """Return the largest norm-wise relative distance of two trees' leaves."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(
        float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0)) for a, b in pairs
    )


def _views(
    model: models.ModelConfig, rows: Any, host: Any, card: Any
) -> dict[str, Any]:
    """Count the values of random views and masks that differ on the card."""
    mask_id = model.vocab_size - 3

    def views(images: Any, tokens: Any) -> tuple[Any, Any]:
        """Mask the tokens and augment the images of one key."""
        key = jax.random.key(1)
        masked = mask_tokens(key, tokens, rate=MASK_RATE, mask_id=mask_id)
        return augment_images(key, images, Augmentation()), masked

    made = []
    for device in (host, card):
        given = jax.device_put((rows["image"], rows["tokens"]), device)
        made.append(jax.tree.map(np.asarray, jax.jit(views)(*given)))
    (pixels, masked), (others, also_masked) = made
    apart = [int((a != b).sum()) for a, b in zip(masked, also_masked, strict=True)]
    gap = float(np.abs(pixels - others).max())
    return {
        "tokens that differ": sum(apart),
        "pixels that differ": int((pixels != others).sum()),
        "by at most": gap,
        "limit": VIEW_LIMIT,
        "verdict": "near" if not sum(apart) and gap < VIEW_LIMIT else "FAR",
    }
