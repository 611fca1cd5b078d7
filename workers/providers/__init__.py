"""One file, one dialect, without I/O; `hosts.toml` has a row per OpenAI-compatible host."""
