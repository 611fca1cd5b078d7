"""What outlives a request and is not in Redis: files, their contents and their records."""
