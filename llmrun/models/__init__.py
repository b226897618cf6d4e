"""Models: what a name means, what the hub has, what lies on this disk."""
