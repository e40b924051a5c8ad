"""The stack, and what it takes to bring it up."""
