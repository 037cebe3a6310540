"""Families of units and the weights between them: what the circuits and ablation probes are made of."""
