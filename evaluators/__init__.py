"""Suites and lm-eval tasks (YAML data)."""
