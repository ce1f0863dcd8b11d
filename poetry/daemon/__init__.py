"""The server as a process of its own: built from words, with logs, metrics and systemd."""
