"""Derivatives of every layer along directions of image space: what the Lie probe is made of."""
