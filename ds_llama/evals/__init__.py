"""What a model has learnt: perplexity, and text that it writes."""
