"""Checkpoints on disk: safetensors in and out, checked before anything is read."""
