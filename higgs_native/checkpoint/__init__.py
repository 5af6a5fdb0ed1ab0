"""Checkpoints: their configuration and tensors in every layout, packed files, adapters, and the Hub."""
