"""Item banks from answers that exist: where answers lie, how well a bank fits, and a page that shows it."""
