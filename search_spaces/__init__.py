"""Presets of search spaces (YAML data)."""
