"""Prompt managers and the isolated place where user code runs."""
