"""Evaluation of a model in memory: generation, sandboxed tests, metrics, bits per byte.

Nothing here knows about pruning, so the original and the pruned model take the same path. Importing the package does not
import torch.
"""
