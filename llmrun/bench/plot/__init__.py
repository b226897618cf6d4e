"""Pictures of records: what they show, and it as an image and as text."""
