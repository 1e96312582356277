"""Layer paths: run them, share their prefixes, export them."""
