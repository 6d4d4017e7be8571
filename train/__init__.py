"""Pretraining: text, tokenizer, batches, model, optimisation. Knows nothing of analysis."""
