"""Attention: the call, its masks and scores, and the backends that serve it."""
