"""Item response theory: which questions tell candidates apart, what few answers say about all of them, and how surely.

Pure functions and frozen values over numpy arrays; no models, no files but banks, no random state of its own.
"""
