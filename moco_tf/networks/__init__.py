"""Encoders: ResNet backbones, heads, batch norms, and what they cost."""
