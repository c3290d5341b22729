"""The model card of a merge: how it was made, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import ConfigError
from workbench.merging.recipe import MergeRecipe

_CARD = """---
library_name: transformers
tags:
- merge
---
# Merged model

`{method}` of {parents}{base}, made with `workbench.export_merge`.

This model gives no medical advice. It is for research and teaching, and nothing that it writes may guide the care of a
person. The licences of its parents apply.

- Vocabulary: {size} tokens; {vocabulary}.
- Chat template: {template}.
- Special tokens: `{special}`.

## Recipe
```json
{recipe}
```

For mergekit (it wants folders as absolute paths):
```yaml
{yaml}
```
"""


def model_card(recipe: MergeRecipe, tokenizers: Mapping[str, Any], tokenizer: Any, how: str | None) -> str:
    """Return the text of README.md for a merged model.

    Args:
        recipe: The merge.
        tokenizers: The parents' by name, the base's among them.
        tokenizer: The result's.
        how: How the vocabularies were aligned; None where they were the same.
    """
    owners = [name for name, own in tokenizers.items() if own.chat_template == tokenizer.chat_template]
    others = [name for name in tokenizers if name not in owners]
    try:
        yaml = recipe.to_yaml(absolute=False).rstrip()
    except ConfigError as error:
        yaml = f"# mergekit has no such recipe: {error}"
    return _CARD.format(
        method=recipe.method,
        parents=_names(recipe.parents),
        base=f" on `{recipe.base}`" if recipe.base else "",
        size=len(tokenizer.get_vocab()),
        vocabulary=f"`{how}` of those of the parents, aligned by token" if how else "all parents have the same",
        template=(f"that of {_names(owners)}" if tokenizer.chat_template else "none")
        + (f"; {_names(others)} have another" if others else ""),
        special=json.dumps(tokenizer.special_tokens_map, ensure_ascii=False, default=str),
        recipe=json.dumps(json.loads(recipe.to_json()), indent=2, ensure_ascii=False),
        yaml=yaml,
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
