"""The commands of the command line: their options, what they print, their exit codes."""
