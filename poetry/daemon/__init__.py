"""The server as a process: built from command-line arguments, with logs, metrics and systemd."""
