"""Plain types of the domain: states, operations, accounts, errors. Nothing here does I/O."""
