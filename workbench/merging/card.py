"""The model card of a merge: how it was made, and what it is not for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workbench.errors import ConfigError
from workbench.merging.recipe import MergeRecipe
from workbench.merging.vocabulary import Vocabulary


def model_card(
    recipe: MergeRecipe, tokenizers: Mapping[str, Any], how: str | None, tokenizer: Any, aligned: Vocabulary | None
) -> str:
    """Return the text of README.md for a merged model.

    Args:
        recipe: The merge.
        tokenizers: The parents' by name, the base's among them.
        how: How the vocabularies were aligned; None where they were the same.
        tokenizer: The one whose chat template and special tokens the result has.
        aligned: The result's vocabulary, where it was aligned.
    """
    owner = next(name for name, own in tokenizers.items() if own is tokenizer)
    size = len(tokenizer.get_vocab()) if aligned is None else len(aligned.tokenizer.get_vocab())
    vocabulary = "all parents have the same" if how is None else f"`{how}` of the parents', aligned by token"
    special = json.dumps(tokenizer.special_tokens_map, ensure_ascii=False, default=str)
    template = tokenizer.chat_template
    others = [name for name, own in tokenizers.items() if own.chat_template != template]
    differing = f"; not that of {', '.join(f'`{name}`' for name in others)}" if others else ""
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- merge",
        "---",
        "# Merged model",
        "",
        f"`{recipe.method}` of {', '.join(f'`{name}`' for name in recipe.parents)}"
        + (f" on `{recipe.base}`" if recipe.base else "")
        + ", made with `workbench.export_merge`.",
        "",
        "This model gives no medical advice. It is for research and teaching, and nothing that it writes may guide the "
        "care of a person. The licences of its parents apply.",
        "",
        f"- Vocabulary: {size} tokens; {vocabulary}.",
        f"- Chat template: {f'that of `{owner}`' if template else 'none'}{differing}.",
        f"- Special tokens, from `{owner}`: `{special}`.",
        "",
        "## Recipe",
        "```json",
        json.dumps(json.loads(recipe.to_json()), indent=2, ensure_ascii=False),
        "```",
        "",
        "For mergekit (relative folders as absolute paths):",
        "```yaml",
        _yaml(recipe).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _yaml(recipe: MergeRecipe) -> str:
    try:
        return recipe.to_yaml(absolute=False)
    except ConfigError as error:
        return f"# mergekit has no such recipe: {error}"
