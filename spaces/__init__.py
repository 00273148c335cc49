"""What may be searched: tasks, spaces and recipes. Loads neither torch nor ray."""
