"""Distillation: a small model learns from what a large one says and thinks. One file a recipe; `losses.py` is what they share."""
