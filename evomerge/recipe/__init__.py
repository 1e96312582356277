"""Recipes: merges as values, and their files. Pure."""
