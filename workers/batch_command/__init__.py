"""The `promptmill batch` command: a client of the gateway's files and batches for people and scripts."""
