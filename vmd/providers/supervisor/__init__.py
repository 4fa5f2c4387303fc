"""What runs commands and terminals inside a machine, and how it is spoken to."""
