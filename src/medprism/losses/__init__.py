"""Loss functions of tensors: no Lightning, no files, no data set."""
