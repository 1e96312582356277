"""What a machine, a folder and a cluster offer, and what is missing: findings for `evomerge doctor`."""
