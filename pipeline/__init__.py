"""The contract between promptmill's edges: jobs, stages, errors, settings and the transport that carries them."""
