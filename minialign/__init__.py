"""minialign: the course notes on aligning, fine-tuning, quantizing and distilling language models, made runnable."""
