"""Options, help and completion: what commands are made of."""
