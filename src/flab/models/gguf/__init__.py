"""A model as one GGUF file for llama.cpp and what is built on it: vocabulary, settings and tensors, without its converter."""
