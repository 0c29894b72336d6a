"""Scoring of a model that is in memory, pruned or not: generation, sandboxed tests, metrics, bits per byte.

Nothing here knows about pruning: the unpruned model takes the same path. Importing the package loads no
torch.
"""
