"""What a compiled program costs one device, read from its text, and what the device could do at most."""
