"""Generated sample data, one module per task, in the task's own layout."""
