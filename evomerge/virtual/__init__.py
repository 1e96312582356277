"""Parents that are made from others: adapters, own bases, aligned vocabularies, methods too heavy for a search."""
