"""Reward models of several kinds on the same backbone and data."""
