"""The mathematics of contrast: losses, queue and memory bank, the key encoder's average, shuffles, collapse."""
