"""Routing as functions of tensors: the top-k gate, its entropy, and the losses that shape a router and its experts.

Losses are float32. A `...` in a shape is any number of leading dimensions, such as layers, each with a loss of its own.
`counted` `(N,)` marks the rows that count (tokens that are no padding), with bool or 0 and 1; None counts all, and no
row at all gives 0. Nothing here waits for the device.

`across` is for processes that each hold a part of a batch and average their gradients: it averages a tensor over them,
without gradient (`workbench.ops.processes.average`). Every process then gets its part of the loss of all rows, so that
value and gradient of the whole are the averages over processes, as if one process had read the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from workbench.errors import ConfigError

SMALLEST_NORM = 1e-6
"""An expert's output that is shorter than this has no direction worth comparing: a fresh LoRA's is exactly 0."""

Across = Callable[[Tensor], Tensor]

_NEVER = -1e9  # a finite logit, so that a row without any true candidate has no NaN in its gradient


def top_k_gate(router_logits: Tensor, num_experts_per_tok: int) -> tuple[Tensor, Tensor]:
    """Keep the K largest routing probabilities of each row and renormalise them.

    p = softmax(router_logits);  w_k = p_k / sum_{j in top-K} p_j, which is the softmax of the K largest logits.

    Args:
        router_logits: Unnormalised scores, `(N, E)`.
        num_experts_per_tok: K, between 1 and E.

    Returns:
        routing_weights `(N, K)` in the dtype of the logits, which sum to 1, and selected_experts `(N, K)`, int64,
        best first.

    Raises:
        ConfigError: K is below 1 or above E.

    Source: MixLoRA (arXiv 2404.15159), section 3.2; Mixtral (arXiv 2401.04088), section 2.1.
    """
    experts = router_logits.shape[-1]
    if not 1 <= num_experts_per_tok <= experts:
        raise ConfigError(
            f"num_experts_per_tok is {num_experts_per_tok} and there are {experts} experts; a token takes between 1 "
            "and all of them. Choose a number in that range."
        )
    best, selected = router_logits.topk(num_experts_per_tok, dim=-1)
    return best.softmax(dim=-1), selected


def router_entropy(router_logits: Tensor) -> Tensor:
    """Return the entropy of each row's routing probabilities, -sum_e p_e log p_e, in nats.

    Args:
        router_logits: Unnormalised scores, `(N, E)`.

    Returns:
        Between 0 (one expert takes all) and log E (undecided), `(N,)`, float32.
    """
    logs = router_logits.float().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def _alone(values: Tensor) -> Tensor:
    return values


def balance_loss(
    router_logits: Tensor, selected_experts: Tensor, counted: Tensor | None = None, across: Across = _alone
) -> Tensor:
    """Return what an uneven use of the experts costs: E * sum_e f_e P_e.

    f_e is the number of choices of expert e per row (they sum to K), P_e its mean routing probability. Even use gives
    K, and E is the most, at K = 1, when one expert takes all. f carries no gradient.

    Args:
        router_logits: Unnormalised scores, `(..., N, E)`.
        selected_experts: The chosen experts, `(..., N, K)`, int64.
        counted: Rows that count, `(N,)`.
        across: See above.

    Returns:
        Shape `(...)`.

    Source: Switch Transformer (arXiv 2101.03961), equations 4 to 6, for K = 1; MixLoRA (arXiv 2404.15159), section 3;
    the scale for K > 1 is that of transformers' Mixtral.
    Deviates: Mixtral's function pools the rows of all layers before it multiplies. Here a layer is balanced by itself,
    as in Switch; concatenated logits of all layers give Mixtral's number.
    """
    probabilities = router_logits.float().softmax(dim=-1)
    chosen = torch.zeros_like(probabilities).scatter_(-1, selected_experts, 1.0)
    share = across(_mean(chosen, counted, across))
    return router_logits.shape[-1] * (share * _mean(probabilities, counted, across)).sum(dim=-1)


def z_loss(router_logits: Tensor, counted: Tensor | None = None, across: Across = _alone) -> Tensor:
    """Return the mean of (log sum_e exp(logit_e))^2, which keeps the logits small.

    Args:
        router_logits: Unnormalised scores, `(..., N, E)`.
        counted: Rows that count, `(N,)`.
        across: See above.

    Returns:
        Shape `(...)`.

    Source: ST-MoE (arXiv 2202.08906), equation 5.
    """
    squares = router_logits.float().logsumexp(dim=-1, keepdim=True).square()
    return _mean(squares, counted, across).squeeze(-1)


def expert_cosines(hidden: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines between the outputs of all experts of each row, without forming an output.

    With o_e = B_e h_e, the dot products are o_i . o_j = h_i^T (B_i^T B_j) h_j: a row costs E^2 R numbers, not E D.

    Args:
        hidden: What each expert's A made of the row, h_e, `(N, E, R)`.
        up: The experts' B side by side, `(D, E * R)`.

    Returns:
        Cosines `(N, E, E)`, 0 where an output is shorter than `SMALLEST_NORM`, and which outputs are not, `(N, E)`.
    """
    rows, experts, rank = hidden.shape
    hidden, up = hidden.float(), up.float()
    gram = (up.mT @ up).view(experts, rank, experts * rank)
    turned = (hidden.transpose(0, 1) @ gram).view(experts, rows, experts, rank)
    dots = torch.einsum("injr,njr->nij", turned, hidden)
    squares = dots.diagonal(dim1=1, dim2=2)
    present = squares > SMALLEST_NORM**2
    lengths = squares.clamp_min(SMALLEST_NORM**2).sqrt()
    cosines = dots / (lengths[:, :, None] * lengths[:, None, :])
    return cosines.masked_fill(~(present[:, :, None] & present[:, None, :]), 0.0), present


def in_batch_contrastive(
    cosines: Tensor,
    selected_experts: Tensor,
    present: Tensor,
    temperature: float,
    counted: Tensor | None = None,
    across: Across = _alone,
) -> Tensor:
    """Pull the outputs of a row's chosen experts together, and push those of the others away.

    For a chosen expert's output q, with k+ the other chosen experts' outputs for that row, k- those of the experts not
    chosen, all of length 1: L = -log(sum exp(q.k+ / tau) / (sum exp(q.k+ / tau) + sum exp(q.k- / tau))).

    Args:
        cosines: Between the outputs of all experts of a row, `(..., N, E, E)`.
        selected_experts: The chosen experts, `(..., N, K)`, int64; 2 <= K < E, or there is nothing to tell apart.
        present: Outputs that are long enough to have a direction, `(..., N, E)`, bool; the others are left out.
        temperature: tau, above 0.
        counted: Rows that count, `(N,)`.
        across: See above.

    Returns:
        The mean over the chosen outputs that have a k+, `(...)`; 0 where there is none.

    Source: CoMoE (arXiv 2505.17553), the contrastive objective.
    """
    chosen = torch.zeros_like(present).scatter_(-1, selected_experts, True)
    others = ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    candidates = present[..., None, :] & others
    positives = candidates & chosen[..., None, :]
    asking = chosen & present & positives.any(dim=-1)
    logits = cosines / temperature
    loss = _over(logits, candidates) - _over(logits, positives)
    return _mean_of(loss, asking if counted is None else asking & counted.bool()[:, None], across)


def queue_contrastive(
    queries: Tensor, keys: Tensor, filled: Tensor, temperature: float, minimum: int = 1, across: Across = _alone
) -> Tensor:
    """Pull an expert's output towards its own past outputs, and push it from those of the other experts.

    L = -log(sum_{k in queue e} exp(q_e.k / tau) / sum_{k in all queues} exp(q_e.k / tau)).

    Args:
        queries: An output of each expert for each of B sequences, of any length, `(..., B, E, D)`; one that is shorter
            than `SMALLEST_NORM` is left out.
        keys: Past outputs of length 1 without gradient, `(..., E, Q, D)`.
        filled: How many of an expert's keys are real, the first ones of its queue, `(..., E)`.
        temperature: tau, above 0.
        minimum: A queue that holds fewer is neither asked nor counted; a query needs two such queues, its own and
            another one.
        across: See above.

    Returns:
        The mean over the queries that count, `(...)`; 0 where there is none.

    Source: our reading of SparseDoctor (arXiv 2509.14269), whose formula is not public: the loss of CoMoE (arXiv
    2505.17553) over a queue like that of MoCo (arXiv 1911.05722).
    Deviates: no momentum encoder.
    """
    experts, size = keys.shape[-3:-1]
    queries = queries.float()
    ready = filled >= minimum
    real = ready[..., None] & (torch.arange(size, device=keys.device) < filled[..., None])
    usable = ready & (ready.sum(dim=-1, keepdim=True) > 1)
    asking = (queries.norm(dim=-1) > SMALLEST_NORM) & usable[..., None, :]
    units = normalize(queries, dim=-1, eps=SMALLEST_NORM).flatten(-3, -2)
    logits = units @ keys.float().flatten(-3, -2).mT / temperature
    by_queue = _over(logits.unflatten(-1, (experts, size)), real[..., None, :, :])
    by_queue = by_queue.unflatten(-2, (-1, experts))
    loss = by_queue.logsumexp(dim=-1) - by_queue.diagonal(dim1=-2, dim2=-1)
    return _mean_of(loss, asking, across)


def _over(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return log sum exp over the allowed entries of the last dimension."""
    return logits.masked_fill(~allowed, _NEVER).logsumexp(dim=-1)


def _mean(rows: Tensor, counted: Tensor | None, across: Across) -> Tensor:
    """Return the mean of the rows `(..., N, C)` that count, `(..., C)`, 0 where none does."""
    weights = rows.new_ones(rows.shape[-2]) if counted is None else counted.to(rows.dtype)
    return (weights @ rows) / _divisor(across(weights.sum()))


def _mean_of(values: Tensor, asked: Tensor, across: Across) -> Tensor:
    """Return the mean of the values `(..., N, E)` that are asked for, `(...)`, 0 where none is."""
    count = across(asked.sum(dim=(-2, -1)).to(values.dtype))
    return (values * asked).sum(dim=(-2, -1)) / _divisor(count)


def _divisor(count: Tensor) -> Tensor:
    """Return a count, and 1 for 0; over processes it is an average, which may be a fraction."""
    return torch.where(count > 0, count, 1.0)
