"""Representations of a group in the layers of a network: what the orbit probe measures layer by layer."""
