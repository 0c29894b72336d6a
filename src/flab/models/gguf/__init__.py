"""Write a model as one GGUF file for llama.cpp and the programs built on it, without llama.cpp's converter."""
