"""The run directory: journal, responses, lock, replay."""
