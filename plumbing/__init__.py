"""What a run needs and the report does not mention: weight files, folders, checkpoints."""
