"""Which deployment gets an attempt, and what happens after it failed."""
