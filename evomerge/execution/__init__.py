"""Where candidates are scored: local or on Ray."""
