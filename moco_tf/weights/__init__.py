"""Encoders from files and into files."""
