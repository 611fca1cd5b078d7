"""The work: stages, prompt managers, providers and routing."""
