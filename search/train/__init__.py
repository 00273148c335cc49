"""Training one fold, without Ray."""
