"""Measurement procedures: a probe a file; the contract is in base."""
