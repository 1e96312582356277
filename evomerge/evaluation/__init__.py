"""Evaluation: benchmarks compiled to a plan, models scored on it."""
