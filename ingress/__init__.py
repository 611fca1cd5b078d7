"""The HTTP edge: bytes in, a job; a reply, bytes out."""
