"""Publishing an exported merge: its licence judged, its results stated, its files sent to the hub in one commit."""
