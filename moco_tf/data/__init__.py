"""Data sets, random views and the input pipeline."""
