"""`lightning new-method`: the files of a new method, from templates."""
