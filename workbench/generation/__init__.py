"""Writing answers: one stream, many prompts for a score, and many people's requests to many variants at once."""

from workbench.generation.answers import Prompt, context_length, encode_prompt, generate_batch, stream
from workbench.generation.decoder import check_logits, evaluating, pad_left
from workbench.generation.endpoint import Endpoint
from workbench.generation.requests import Answer, Request
from workbench.generation.scheduler import Scheduler
from workbench.generation.surprise import surprise
from workbench.generation.variants import Variant, make_variants

__all__ = [
    "Answer",
    "Endpoint",
    "Prompt",
    "Request",
    "Scheduler",
    "Variant",
    "check_logits",
    "context_length",
    "encode_prompt",
    "evaluating",
    "generate_batch",
    "make_variants",
    "pad_left",
    "stream",
    "surprise",
]
