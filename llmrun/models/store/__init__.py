"""The models on this machine: where they lie, what is remembered of them, how they come and go. Never the network."""
