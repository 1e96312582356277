"""A small real model zoo, trained on the CPU: a base, three experts, and the tasks that tell them apart."""
