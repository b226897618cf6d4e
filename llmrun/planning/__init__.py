"""What lies where: bytes by device, layers on devices, how long the context is. Pure: no engine is asked."""
