# SPDX-License-Identifier: Apache-2.0
"""The model card of published weights: what a run knows of them, and what it cannot."""

import json
from collections.abc import Mapping
from typing import Any

from data_pipeline.hints import printable
from fmfa_jax.models import ModelConfig

_HEAD = """---
# license: to be filled in by you who publish this
library_name: fmfa_jax
tags:
- text-to-image-person-retrieval
- person-search
- clip
- jax
---
"""

OPEN = """## For you who publish this to fill in

- **Licence.** None is stated. The terms of the first weights and of the data set bind
  what may be done with these; write `license:` at the top of this file.
- **Intended use, people in the pictures, bias.** Nothing but the figures above was
  measured. Finding people in pictures is surveillance where they do not know of it.
"""

_USE = {
    "native": """All heads and the sizes are in `model.safetensors`, in fmfa_jax's own
format; the tokenizer lies beside it.

```bash
python -m fmfa_jax.search index PICTURES --model hf://{repo} --out people.index
python -m fmfa_jax.search query people.index "a man in a red jacket"
```

`--config.init.path=hf://{repo}` starts a training from them.
""",
    "hf": """The two towers, as `transformers.CLIPModel` and `CLIPProcessor` open them;
with pictures of {height} x {width} pass `interpolate_pos_encoding=True`.

```bash
python -m fmfa_jax.search index PICTURES --model hf://{repo} --out people.index
```
""",
}


def model_card(
    repo: str,
    sizes: ModelConfig,
    config: Mapping[str, Any],
    *,
    to: str,
    weights: str,
    about: Mapping[str, str],
    table: str,
) -> str:
    """Return README.md of a repository.

    Args:
        repo: ORG/NAME.
        sizes: Of the model.
        config: What the run was told, dotted key -> value; {} where it is unknown.
        to: "native" or "hf".
        weights: SHA-256 of the weight file.
        about: What the weight file says of itself, such as its step.
        table: Markdown table of the run's last evaluation; "" if there is none.
    """
    height, width = sizes.image_size
    use = _USE[to].format(repo=repo, height=height, width=width)
    parts = [
        f"{_HEAD}\n# {repo}\n",
        "Two CLIP towers that find pictures of people by sentences.\n",
        _origin(sizes, config, about, weights),
        f"## Use\n\n{use}",
        f"## Figures\n\n{_figures(table)}",
        OPEN,
    ]
    if config:
        told = json.dumps(dict(config), indent=1, sort_keys=True)
        parts.append(f"## What the run was told\n\n```json\n{told}\n```\n")
    return "\n".join(parts)


def _origin(
    sizes: ModelConfig, config: Mapping[str, Any], about: Mapping[str, str], sha256: str
) -> str:
    height, width = sizes.image_size
    rows = {
        "method": config.get("method", "unknown"),
        "data set": config.get("data.name", "unknown"),
        "losses": ", ".join(_losses(config)) or "unknown",
        "training step": about.get("step", "unknown"),
        "chosen on": about.get("chosen_on") or "unknown",
        "pictures": f"{height} x {width}, patches of {sizes.patch}",
        "text": f"{sizes.context_length} positions, vocabulary of {sizes.vocab_size}",
        "activation": sizes.activation,
        "SHA-256": sha256,
    }
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines, ""])


def _losses(config: Mapping[str, Any]) -> list[str]:
    prefix = "losses."
    found = {k: v for k, v in config.items() if k.startswith(prefix) and v}
    return [f"{key.removeprefix(prefix)} {value}" for key, value in found.items()]


def _figures(table: str) -> str:
    if not table:
        return "These weights were not measured.\n"
    # Below this page's own title.
    return f"##{table}" if table.startswith("# ") else table


def _cell(value: object) -> str:
    return printable(str(value)).replace("|", r"\|")
