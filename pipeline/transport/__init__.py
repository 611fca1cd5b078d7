"""How jobs and replies are carried over Redis streams; nothing outside this package imports redis."""
