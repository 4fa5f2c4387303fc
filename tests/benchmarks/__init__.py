"""How fast vmd is beside the bare parts it is made of: `python -m tests.benchmarks [SUBJECT ...]`."""
