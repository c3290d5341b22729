"""Pure functions on tensors; torch only.

Notation used by every docstring of the library: B batch, T tokens, D hidden size, V vocabulary, E experts,
K experts per token, R rank, Q queue, S skills, L layers, N parents of a merge.
"""
