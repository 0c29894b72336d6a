"""How the bundled reference model is made: grammar, corpus, tokenizer, training, measurement."""
