"""Parameter-efficient fine-tuning: one file a method; `trainable.py` is what they share."""
