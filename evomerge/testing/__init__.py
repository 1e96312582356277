"""For plug-in authors and our own tests: conformance suites, tiny checkpoints, problems with known optima."""
