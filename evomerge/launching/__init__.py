"""Texts that start a search on a cluster: values in, a script or a manifest out. Nothing here runs anything."""
