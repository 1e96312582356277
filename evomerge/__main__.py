"""Merge methods, layer paths and search for language models, from the shell: `python -m evomerge`."""

from evomerge.cli.main import main

if __name__ == "__main__":
    main()
