"""Fewer bits a number: the mappings, the layers that compute with integers, and the ways to bring a model there."""
