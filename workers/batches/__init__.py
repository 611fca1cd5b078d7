"""Batches: their lines are validated, fed to the pipeline in a bounded window, and their answers collected."""
