"""The model hub, and the only door to huggingface_hub. Nothing here prints: events are for those who show them."""
