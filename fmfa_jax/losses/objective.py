# SPDX-License-Identifier: Apache-2.0
"""The objective: named terms times their weights, over the whole batch."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Array, Bool, Float, Int

from fmfa_jax.losses.alignment import efa
from fmfa_jax.losses.identity import identity_loss
from fmfa_jax.losses.masked_language import labelled_mean
from fmfa_jax.losses.matching import cmpm, itc, sdm

POSITIVES = ("pair", "person")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the model says about one global batch; None: not computed.

    Attributes:
        image_tokens: class token and patches of each picture.
        text_tokens: every position of each caption.
        image: global features of the pictures, not normalised.
        text: global features of the captions, not normalised.
        person: identity of each pair, 0..k-1.
        text_mask: positions of `text_tokens` that hold words.
        image_logits: identity scores of the pictures.
        text_logits: identity scores of the captions.
        masked_losses: of the masked positions, see `token_losses`.
        masked_labels: their original tokens; 0 where a row stands for nothing.
    """

    image_tokens: Float[Array, "b n d"] | None = None
    text_tokens: Float[Array, "b l d"] | None = None
    image: Float[Array, "b d"] | None = None
    text: Float[Array, "b d"] | None = None
    person: Int[Array, " b"] | None = None
    text_mask: Bool[Array, "b l"] | None = None
    image_logits: Float[Array, "b k"] | None = None
    text_logits: Float[Array, "b k"] | None = None
    masked_losses: Float[Array, "b c"] | None = None
    masked_labels: Int[Array, "b c"] | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the terms compute; the defaults are the released code's.

    Attributes:
        scale: 1 / temperature of sdm, a_sdm and itc.
        a_sdm_weight: "official" | "paper" | "plus", see `matching.sdm`.
        a_sdm_alpha: strength of that weight; None: the rule's own.
        efa_rule: "official" | "plus", see `alignment.efa`.
        itc_positives: "pair", or "person": all pairs of one person match.
    """

    scale: float = 50.0
    a_sdm_weight: str = "official"
    a_sdm_alpha: float | None = None
    efa_rule: str = "official"
    itc_positives: str = "pair"

    def __post_init__(self):
        if self.itc_positives not in POSITIVES:
            raise ValueError(
                f"itc_positives must be one of {POSITIVES}, got {self.itc_positives!r}."
            )


@dataclass(frozen=True)
class Given:
    """The inputs as one term sees them: reading one that is missing is an error."""

    term: str
    inputs: Inputs

    def __getattr__(self, name: str) -> Array:
        value = getattr(self.inputs, name)
        if value is None:
            raise ValueError(
                f"The loss {self.term!r} needs {name}, which is missing from Inputs: "
                f"compute it, or set the weight of {self.term!r} to 0."
            )
        return value


TERMS: dict[str, Callable[[Given, Options], Float[Array, ""]]] = {
    "sdm": lambda x, o: sdm(x.image, x.text, x.person, scale=o.scale),
    "a_sdm": lambda x, o: sdm(
        x.image,
        x.text,
        x.person,
        scale=o.scale,
        weight=o.a_sdm_weight,
        alpha=o.a_sdm_alpha,
    ),
    "id": lambda x, o: identity_loss(x.image_logits, x.text_logits, x.person),
    "mlm": lambda x, o: labelled_mean(x.masked_losses, x.masked_labels),
    "efa": lambda x, o: efa(
        x.text_tokens,
        x.image_tokens,
        rule=o.efa_rule,
        person=x.person if o.efa_rule == "plus" else None,
        text_mask=x.text_mask if o.efa_rule == "plus" else None,
    ),
    "itc": lambda x, o: itc(
        x.image,
        x.text,
        scale=o.scale,
        person=x.person if o.itc_positives == "person" else None,
    ),
    "cmpm": lambda x, o: cmpm(x.image, x.text, x.person),
}


def objective(
    inputs: Inputs,
    weights: Mapping[str, float],
    options: Options | None = None,
) -> dict[str, Float[Array, ""]]:
    """Compute every term that has a weight, and their weighted sum.

    Args:
        inputs: what the model says about the global batch.
        weights: term -> weight; a term of weight 0 is not computed.
        options: how the terms compute; None: as the released code.

    Returns:
        term -> its float32 value without the weight, and "total".

    Raises:
        ValueError: a term that does not exist, no term at all, or a term that
            reads an input that is None.
    """
    _check_names(weights)
    asked = {name: weight for name, weight in weights.items() if weight}
    if not asked:
        raise ValueError(
            f"The objective is empty: give at least one of {', '.join(TERMS)} a "
            f"weight; got {dict(weights)}."
        )
    options = Options() if options is None else options
    values = {name: TERMS[name](Given(name, inputs), options) for name in asked}
    total = sum(weight * values[name] for name, weight in asked.items())
    return {**values, "total": total}


def _check_names(weights: Mapping[str, float]) -> None:
    """Refuse terms that do not exist, naming the near ones."""
    for name in weights:
        if name not in TERMS:
            near = difflib.get_close_matches(name, TERMS, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"There is no loss {name!r}.{hint} Known: {', '.join(TERMS)}."
            )
