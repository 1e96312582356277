"""Pareto archive and hypervolume. Pure."""
