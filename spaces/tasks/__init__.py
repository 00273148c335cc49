"""The known tasks, one module each; `spaces.registry` finds them by name."""
