"""Backbones, found by name: each file defines one family."""
