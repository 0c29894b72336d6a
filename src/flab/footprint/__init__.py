"""What a model costs: bytes, memory, speed, floating-point operations, joules. It knows nothing of pruning."""
