"""Optimizers behind one ask/tell contract."""
