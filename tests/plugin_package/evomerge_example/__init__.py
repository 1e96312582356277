"""An example of every kind of plug-in for evomerge."""
