"""Search spaces: ordered named dimensions over [0, 1]^d. Pure numpy."""
