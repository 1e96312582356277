"""Merging: recipes to tensors, in place or streamed to disk."""
