"""What is known of the parents before anything is merged: norms, cosines, conflicts, and what looks wrong."""
